"""The rows of the outputs that are compared: examples of a classifier, tokens of a decoder."""

__all__ = ["select_items"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ftrt.errors import UnsupportedError

IGNORED_LABEL = -100


def select_items(
    student: Tensor, teacher: Tensor, batch: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's logits of the items that the labels mark, each in its dtype.

    Two-dimensional logits are a classifier's, one item an example. Three-dimensional ones are a
    causal language model's: position i predicts label i + 1, so the last position and those before
    an ignored label are left out.

    Args:
        student: (batch, classes) or (batch, tokens, vocabulary). teacher: the same shape.
        batch: the model inputs; `labels` (batch) or (batch, tokens), -100 where nothing is asked.

    Returns:
        Twice (items, classes or vocabulary).

    Raises:
        UnsupportedError: the shapes differ; the message has both.
    """
    labels: Tensor = batch["labels"]
    if student.shape != teacher.shape or student.shape[: labels.dim()] != labels.shape:
        raise UnsupportedError(
            "distillation: student and teacher must have logits of one shape that begins with that"
            f" of the labels; got student {tuple(student.shape)}, teacher {tuple(teacher.shape)},"
            f" labels {tuple(labels.shape)}"
        )
    if student.dim() == 3:
        student, teacher, labels = student[:, :-1], teacher[:, :-1], labels[:, 1:]
    marked = labels.ne(IGNORED_LABEL)
    return student[marked], teacher[marked].detach().to(student.device)
