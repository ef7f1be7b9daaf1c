"""The teacher `online` and the recipe `distillation`."""

import pytest
import torch
from ftrt_distill.distillation import Distillation, register_recipes
from ftrt_distill.online import OnlineTeacher, register_signals
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ftrt import Head, PluginConfig, Recipe
from ftrt.errors import FtrtError, UnsupportedError, UsageError

IDS = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
MASK = (IDS != 0).long()


class Labels(Head):
    """As much of a head as a teacher asks for."""

    name = "labels"
    Config = PluginConfig
    auto_class = "AutoModelForSequenceClassification"
    task_type = "SEQ_CLS"
    encode = collate = predict = None


Labels.__abstractmethods__ = frozenset()


class Words(Labels):
    auto_class = "AutoModelForCausalLM"
    task_type = "CAUSAL_LM"


def bert(labels=("neg", "pos"), *, seed=0, **changes):
    sizes = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    names = dict(enumerate(labels))
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            **{**sizes, "intermediate_size": 16, "max_position_embeddings": 32, **changes},
            id2label=names,
            label2id={label: index for index, label in names.items()},
        )
    )


def llama(*, seed=0, **changes):
    sizes = dict(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "intermediate_size": 16, **changes}))


@pytest.fixture
def save(tmp_path):
    def to(model, name="teacher"):
        words = {w: i for i, w in enumerate(["[PAD]", *(f"w{i}" for i in range(63))])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
        model.save_pretrained(tmp_path / name)
        fast.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return to


def teach(path, student, head, **options):
    teacher = OnlineTeacher(OnlineTeacher.Config(path=path, **options))
    teacher.bind(head, student)
    return teacher


def batch(labels=(0, 1)):
    return {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor(labels)}


def test_hooks_offer_teacher_and_recipe():
    assert register_signals() == [OnlineTeacher] and register_recipes() == [Distillation]


def test_the_teachers_logits_come_without_gradient_in_eval_mode(save):
    original = bert(seed=1, hidden_dropout_prob=0.5).eval()
    teacher = teach(save(original), bert().train(), Labels(None))
    signal = teacher(batch(), hidden_states=False)
    with torch.no_grad():
        expected = original(input_ids=IDS, attention_mask=MASK).logits
    assert set(signal) == {"logits"} and not signal["logits"].requires_grad
    torch.testing.assert_close(signal["logits"], expected)
    assert torch.equal(signal["logits"], teacher(batch(), hidden_states=False)["logits"])


def test_hidden_states_come_if_asked(save):
    signal = teach(save(bert()), bert(), Labels(None))(batch(), hidden_states=True)
    assert len(signal["hidden_states"]) == 3


def test_labels_in_another_order_are_put_in_the_students(save):
    original = bert(("c", "a", "b"), seed=1).eval()
    teacher = teach(save(original), bert(("a", "b", "c")), Labels(None))
    logits = teacher(batch(), hidden_states=False)["logits"]
    with torch.no_grad():
        expected = original(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(logits, expected[:, [1, 2, 0]])


def test_other_labels_are_refused_with_both_sets(save):
    path = save(bert(("cat", "dog")))
    with pytest.raises(
        UnsupportedError, match=r"got \['cat', 'dog'\], the student has \['neg', 'p"
    ):
        teach(path, bert(), Labels(None))


def test_a_folder_without_a_trained_classifier_is_refused(save):
    with pytest.raises(
        UnsupportedError, match="got a BertModel without an output layer for SEQ_CLS"
    ):
        teach(save(bert().bert), bert(), Labels(None))
    with pytest.raises(
        UnsupportedError, match="got a LlamaModel without an output layer for CAUSAL"
    ):
        teach(save(llama().model), llama(), Words(None))


def test_another_vocabulary_is_refused_with_both_sizes(save):
    path = save(bert(vocab_size=100))
    with pytest.raises(UnsupportedError, match="got 100 tokens, the student has 64; choose a tea"):
        teach(path, bert(), Labels(None))


def test_a_causal_teacher_needs_no_label_names_and_other_sizes_fit(save):
    original = llama(seed=1, hidden_size=32, num_hidden_layers=2).eval()
    teacher = teach(save(original), llama(), Words(None))
    inputs = {**batch(), "labels": IDS, "token_type_ids": torch.zeros_like(IDS)}
    signal = teacher(inputs, hidden_states=False)
    with torch.no_grad():
        expected = original(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(signal["logits"], expected)


def test_dtype_is_that_of_the_teachers_weights(save):
    signal = teach(save(bert()), bert(), Labels(None), dtype="bfloat16")(
        batch(), hidden_states=False
    )
    assert signal["logits"].dtype == torch.bfloat16


def test_a_peft_student_is_compared_by_its_base(save):
    from peft import LoraConfig, get_peft_model

    student = get_peft_model(bert(), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    assert teach(save(bert()), student, Labels(None))(batch(), hidden_states=False)


def test_a_missing_folder_and_a_call_before_bind_are_refused(tmp_path):
    with pytest.raises(FtrtError, match="no-such-teacher"):
        teach(str(tmp_path / "no-such-teacher"), bert(), Labels(None))
    teacher = OnlineTeacher(OnlineTeacher.Config(path="teacher"))
    with pytest.raises(UsageError, match=r"teacher teacher: bind\(head, student\) must come first"):
        teacher(batch(), hidden_states=False)


def test_the_recipe_shares_the_weight_between_labels_and_teacher():
    config = Distillation.Config(teacher="./teacher", weight=0.7, temperature=3.0)
    recipe = Recipe.model_validate(Distillation.expand(config))
    task, kl = recipe.losses
    assert (task.name, task.weight) == ("task", pytest.approx(0.3))
    assert (kl.name, kl.weight) == ("logit_kl", 0.7)
    assert kl.options == {"temperature": 3.0, "direction": "forward"}
    assert kl.teacher.name == "online"
    assert kl.teacher.options == {"path": "./teacher", "dtype": "float32"}


def test_the_recipe_adds_hidden_states_if_asked():
    config = Distillation.Config(teacher="./teacher", hidden_weight=0.1)
    names = [section["name"] for section in Distillation.expand(config)["losses"]]
    assert names == ["task", "logit_kl", "hidden_mse"]


def test_a_share_above_one_is_refused():
    with pytest.raises(ValidationError):
        Distillation.Config(teacher="t", weight=1.5)


def test_the_installed_recipe_expands_through_the_registry():
    from ftrt.recipe import load
    from ftrt.registry import Registry

    recipe = load({"recipe": {"name": "distillation", "teacher": "./t"}, "data": {"max_length": 9}})
    expanded = Registry().expand(recipe)
    assert [section.name for section in expanded.losses] == ["task", "logit_kl"]
    assert expanded.data.max_length == 9
    assert Registry().loss(expanded.losses[1]).config.temperature == 2.0
