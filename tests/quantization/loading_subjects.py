"""Tiny models in folders of several shards, for the tests of loading."""

import torch
import transformers
from safetensors.torch import load_file, save_file

from ftrt.integrations import transformers as bridge

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# config, what is saved, what it is read as: tied and untied heads, prefixes added and taken off,
# fresh classifiers, layers that stand in several places, tensors that are joined while reading
KINDS = {
    "encoder": ("BertConfig", "BertModel", "AutoModelForSequenceClassification", {}),
    "tied decoder": ("BertConfig", "BertForMaskedLM", "AutoModelForMaskedLM", {}),
    "language model": ("LlamaConfig", "LlamaForCausalLM", "AutoModelForCausalLM", {}),
    "tied language model": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        "AutoModelForCausalLM",
        {"tie_word_embeddings": True, "num_key_value_heads": 2},
    ),
    "backbone": ("LlamaConfig", "LlamaForCausalLM", "AutoModel", {}),
    "classifier": ("LlamaConfig", "LlamaForCausalLM", "AutoModelForSequenceClassification", {}),
    "shared blocks": (
        "AlbertConfig",
        "AlbertForMaskedLM",
        "AutoModelForSequenceClassification",
        {"embedding_size": 16},
    ),
    "experts": (
        "MixtralConfig",
        "MixtralForCausalLM",
        "AutoModelForCausalLM",
        {"num_local_experts": 2},
    ),
}


def write_model(folder, kind, **changes):
    config_class, model_class, auto_class, more = KINDS[kind]
    config = getattr(transformers, config_class)(**{**SIZES, **more, **changes})
    with torch.random.fork_rng(), bridge.quiet():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(config)
        for parameter in model.parameters():
            parameter.data.normal_()
        # several shards
        model.save_pretrained(folder, max_shard_size="20KB")
    return str(folder), auto_class


def same(model, expected):
    """Every parameter and buffer, and what the model says of itself."""
    for kind in ("state_dict", "named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), (kind, name)
            assert ours[name].dtype == tensor.dtype, (kind, name)
            assert ours[name].requires_grad == tensor.requires_grad, (kind, name)
    assert model.config.to_dict() == expected.config.to_dict()
    assert vars(model).keys() == vars(expected).keys()
    assert vars(model.config).keys() == vars(expected.config).keys()
    assert [m.training for m in model.modules()] == [m.training for m in expected.modules()]
    return True


def changed(folder, change):
    """The folder with one file of weights, changed by a function."""
    weights = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
