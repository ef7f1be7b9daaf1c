"""Accuracy and F1 from logits."""

__all__ = ["classification_scores"]

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def classification_scores(
    logits: NDArray[np.floating], labels: NDArray[np.integer], names: Sequence[str]
) -> dict[str, float]:
    """Accuracy, macro F1, and per class its F1 and support (how many rows have that label).

    Macro F1 is the plain mean over the classes that occur among labels or predictions.

    Args:
        logits: (rows, classes). labels: (rows). names: the classes in order.
    """
    predicted = logits.argmax(axis=-1)
    classes = np.arange(len(names))
    truth, guess = labels[:, None] == classes, predicted[:, None] == classes
    hits, support, guesses = (truth & guess).sum(0), truth.sum(0), guess.sum(0)
    # F1 = 2 hits / (support + guesses); a class that occurs in neither has none
    f1 = 2 * hits / np.maximum(support + guesses, 1)
    occurs = support + guesses > 0
    scores = {
        "accuracy": float((predicted == labels).mean()) if len(labels) else 0.0,
        "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
    }
    for index, name in enumerate(names):
        scores[f"f1/{name}"] = float(f1[index])
        scores[f"support/{name}"] = float(support[index])
    return scores
