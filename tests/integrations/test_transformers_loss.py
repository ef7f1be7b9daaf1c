"""The chunked loss of a causal language model is the model's own, gradient by gradient."""

import copy
import inspect
import pickle

import pytest
import torch
from causal_subjects import HEADS, VOCABULARY, batch, build, gradients, lora, loss_and_gradients
from torch import nn
from torch.profiler import profile

from ftrt.errors import UsageError
from ftrt.integrations.transformers_loss import attach_chunked_loss
from ftrt.ops import linear_cross_entropy as op
from ftrt.testing.tolerances import assert_close

ROWS = 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(op, "_CHUNK_VALUES", ROWS * VOCABULARY)
    monkeypatch.setattr(op, "_BLOCK_VALUES", 2 * VOCABULARY)


def compare(model, inputs, **options):
    """Assert that the road with chunks gives the loss and every gradient of the model's own."""
    loss, expected = loss_and_gradients(model, inputs)
    road = attach_chunked_loss(model, **options)
    assert road.in_training, road.how
    found_loss, found = loss_and_gradients(model, inputs)
    assert found_loss.dtype == loss.dtype
    assert_close(found_loss, loss, k=16)
    assert found.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        assert_close(found[name], gradient, k=VOCABULARY, what=name)
    return road


@pytest.mark.parametrize("items", [None, 90, torch.tensor(90)], ids=["mean", "int", "tensor"])
@pytest.mark.parametrize("head", HEADS)
def test_loss_and_every_gradient_are_the_models_own(head, items):
    make, is_called = HEADS[head]
    inputs = batch() if items is None else {**batch(), "num_items_in_batch": items}
    road = compare(make(), inputs)
    assert ("is called on chunks" in road.how) == is_called


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "mixtral", "gpt2", "opt", "gpt_neox"])
def test_other_models_keep_their_loss_and_gradients(kind):
    changes = {"num_local_experts": 2, "router_jitter_noise": 0.0} if kind == "mixtral" else {}
    model = build(kind, **changes).eval()
    road = attach_chunked_loss(copy.deepcopy(model), in_evaluation=True)
    assert road.in_evaluation, road.how
    model.config.output_router_logits = kind == "mixtral"
    expected_loss, expected = loss_and_gradients(model, batch())
    attach_chunked_loss(model, in_evaluation=True)
    loss, found = loss_and_gradients(model, batch())
    assert_close(loss, expected_loss, k=16)
    # some gradients are 0 but for rounding (a bias that softmax cancels)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * largest, name


@pytest.mark.parametrize("head", ["frozen", "tied_and_trained", "with_lora"])
def test_gradient_checkpointing_keeps_the_gradients(head):
    model = HEADS[head][0]()
    _, expected = loss_and_gradients(model, batch())
    attach_chunked_loss(model)
    model.gradient_checkpointing_enable()
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
    _, found = loss_and_gradients(model, batch())
    for name, gradient in expected.items():
        assert_close(found[name], gradient, k=VOCABULARY, what=name)


@pytest.mark.parametrize("head", ["frozen", "trained", "with_lora"])
def test_autocast_keeps_loss_and_gradients(head):
    model = HEADS[head][0]()
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = loss_and_gradients(model, batch())
        attach_chunked_loss(model)
        found_loss, found = loss_and_gradients(model, batch())
    assert_close(found_loss.bfloat16(), loss, k=16)
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 0.03, (name, error)


def largest_allocation(run):
    with profile(profile_memory=True) as trace:
        run()
    events = trace.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("head", HEADS)
def test_the_logits_of_all_tokens_are_never_allocated(head):
    model, inputs = HEADS[head][0](), batch(4, 32)
    inputs["labels"] = inputs["input_ids"].clone()
    all_logits = 4 * 32 * VOCABULARY * 4
    assert largest_allocation(lambda: loss_and_gradients(model, inputs)) >= all_logits
    attach_chunked_loss(model, in_evaluation=True)
    # the weight's own gradient is the largest tensor left, and smaller
    assert largest_allocation(lambda: loss_and_gradients(model, inputs)) <= all_logits / 4
    model.eval()
    with torch.no_grad():
        assert largest_allocation(lambda: model(**inputs)) <= all_logits / 4


def test_tokens_without_a_label_never_reach_the_output_layer():
    model, inputs, seen = HEADS["hooked"][0](), batch(), []
    attach_chunked_loss(model)
    model.lm_head.register_forward_pre_hook(lambda layer, args: seen.append(args[0].shape[0]))
    with torch.no_grad():
        model(**inputs)
    assert sum(seen) == int((inputs["labels"][:, 1:] != -100).sum())
    assert max(seen) == ROWS


def test_a_micro_batch_without_a_label_is_not_a_number_as_the_models_own():
    model = HEADS["frozen"][0]()
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    attach_chunked_loss(model)
    assert model(**inputs).loss.isnan()
    loss, found = loss_and_gradients(model, {**inputs, "num_items_in_batch": 5})
    assert loss == 0 and found and not any(g.any() for g in found.values())


def test_labels_may_be_positional_and_shifted_beforehand():
    model = build()
    inputs = batch()
    expected = model(**inputs).loss
    attach_chunked_loss(model)
    names = [n for n in inspect.signature(model.forward).parameters]
    position = names.index("labels")
    given = [inputs["input_ids"], inputs["attention_mask"], *[None] * (position - 2)]
    assert_close(model(*given, inputs["labels"]).loss, expected, k=16)
    shifted = nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    assert_close(model(**inputs, shift_labels=shifted).loss, expected, k=16)


def test_outputs_say_why_they_have_no_logits():
    model = build()
    attach_chunked_loss(model)
    output = model(**batch())
    with pytest.raises(UsageError) as error:
        _ = output.logits
    assert str(error.value) == (
        "outputs.logits: the loss was computed in chunks, which makes no logits; set"
        " `chunked_loss: false` in the recipe to have them, or call the model without labels"
    )
    assert getattr(output, "logits", None) is None and "logits" not in output
    assert repr(output).startswith("CausalLMOutputWithPast({'loss': tensor(")
    again = type(output)({key: value for key, value in output.items()})
    with pytest.raises(UsageError):
        _ = again.logits


def test_calls_that_want_logits_have_them():
    model, inputs = build(), batch()
    expected = model(**inputs).logits
    attach_chunked_loss(model)
    ids = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    assert torch.equal(model(**ids).logits, expected)
    assert model(**inputs, logits_to_keep=20).logits.shape == expected.shape
    assert torch.equal(model(**inputs, return_dict=False)[1], expected)
    assert torch.equal(model.eval()(**inputs).logits, expected)


def test_training_and_evaluation_are_chosen_apart():
    model, inputs = build(), batch()
    road = attach_chunked_loss(model, in_training=False, in_evaluation=True)
    assert (road.in_training, road.in_evaluation) == (False, True)
    assert "logits" in model.train()(**inputs)
    assert "logits" not in model.eval()(**inputs)


@pytest.mark.parametrize(
    "kind, changes, reason",
    [
        ("gemma2", {}, "Gemma2ForCausalLM changes logits between lm_head and its loss"),
        ("granite", {"logits_scaling": 8.0}, "GraniteForCausalLM changes logits between lm_head"),
        ("cohere", {}, "CohereForCausalLM changes logits between lm_head and its loss"),
    ],
)
def test_a_model_that_changes_its_logits_keeps_its_own_loss(kind, changes, reason, caplog):
    model = build(kind, **changes)
    with caplog.at_level("INFO"):
        road = attach_chunked_loss(model)
    assert not road.in_training and road.how.startswith(reason)
    assert f"loss: the model's own, with all logits; {reason}" in caplog.text
    assert "logits" in model(**batch())


def other_loss(model):
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.mean()
    return model


def two_calls(model):
    model.lm_head = nn.Sequential(model.lm_head)
    forward = model.forward
    model.forward = lambda **inputs: forward(**inputs) and forward(**inputs)
    return model


def refuses(model):
    def forward(**inputs):
        raise ValueError("pixels are missing")

    model.forward = forward
    return model


def on_meta(model):
    return model.to("meta")


@pytest.mark.parametrize(
    "change, reason",
    [
        (other_loss, "LlamaForCausalLM has the loss <lambda>"),
        (two_calls, "LlamaForCausalLM calls lm_head 2 times and its loss function 2 times"),
        (refuses, "LlamaForCausalLM refused the trial: ValueError: pixels are missing"),
        (on_meta, "LlamaForCausalLM has weights that are not in memory"),
    ],
)
def test_where_the_loss_is_not_chunked_the_reason_is_given(change, reason):
    road = attach_chunked_loss(change(build()))
    assert not road.in_training and not road.in_evaluation
    assert road.how.startswith(reason)
    assert road.to_json() == {
        "chunked_in_training": False,
        "chunked_in_evaluation": False,
        "how": road.how,
    }


def test_a_loss_over_other_classes_is_not_chunked():
    class Padded(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden)[..., : VOCABULARY - 4]

    model = build()
    model.lm_head = Padded(16, VOCABULARY, bias=False)
    road = attach_chunked_loss(model)
    assert road.how == "LlamaForCausalLM has a loss over 500 classes and 496 outputs of lm_head"


def test_models_that_are_no_language_models_are_left_alone():
    assert attach_chunked_loss(nn.Linear(2, 2)).how == "Linear is no transformers model"


def test_the_trial_leaves_modes_random_state_and_gradients_alone():
    model = lora(build(attention_dropout=0.1), target_modules=["q_proj"], lora_dropout=0.2)
    model.get_base_model().model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.random.get_rng_state()
    attach_chunked_loss(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert not gradients(model)


def test_remove_restores_the_model():
    model, inputs = build(), batch()
    state, kind = dict(model.__dict__), type(model)
    road = attach_chunked_loss(model)
    assert type(model) is not kind and type(model).__name__ == "LlamaForCausalLM"
    road.remove()
    assert type(model) is kind and model.__dict__ == state
    assert "logits" in model(**inputs)
    road.remove()


def test_an_error_in_the_forward_leaves_layer_and_loss_in_place():
    model, inputs = build(), batch()
    attach_chunked_loss(model)
    layer = model.lm_head
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 4), VOCABULARY), labels=inputs["labels"][:1, :4])
    assert model.lm_head is layer and "_loss_function" not in model.__dict__


def test_a_class_laid_over_by_somebody_else_is_left_and_inert():
    model = build()
    road = attach_chunked_loss(model)
    model.__class__ = type("Sharded", (type(model),), {})
    road.remove()
    assert type(model).__name__ == "Sharded" and "logits" in model(**batch())


def test_copies_pickles_and_files_are_of_the_models_own_class(tmp_path):
    model = build()
    kind = type(model)
    attach_chunked_loss(model)
    assert isinstance(model, kind)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again) is kind and "logits" in again(**batch())
    model.save_pretrained(tmp_path)
    assert '"LlamaForCausalLM"' in (tmp_path / "config.json").read_text()
    assert inspect.signature(model.forward) == inspect.signature(build().forward)
