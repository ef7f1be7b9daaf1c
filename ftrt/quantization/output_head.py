"""Which layers are a model's output head: those are neither quantized nor adapted by default."""

__all__ = ["OUTPUT_HEAD_NAMES", "output_head_names"]

from torch import nn

# What transformers calls the layer or block that makes logits.
OUTPUT_HEAD_NAMES = frozenset({"lm_head", "classifier", "score", "qa_outputs"})


def output_head_names(model: nn.Module) -> set[str]:
    """Full names of the modules that are, or are inside, the output head.

    The head is what `get_output_embeddings()` returns, where the model has that, and whatever is
    called lm_head, classifier, score or qa_outputs.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    heads = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if (output is not None and module is output)
        or not OUTPUT_HEAD_NAMES.isdisjoint(name.split("."))
    ]
    inside = tuple(f"{name}." for name in heads)
    return {
        name
        for name, _ in model.named_modules(remove_duplicate=False)
        if name in heads or name.startswith(inside)
    }
