"""Accuracy gates: a speed whose results are not right is not a speed, and is not printed.

Bounds are relative Frobenius errors against float64, and cosines of the adapter's gradients.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gate:
    """Which errors a kind of computation may have.

    Attributes:
        at_most: measured name -> largest relative error. Names ending in `_dequantized` compare
            with the product of the rounded weight, the others with that of the true weight.
        cosine: smallest cosine of dA and dB.
    """

    at_most: Mapping[str, float]
    cosine: float = 0.999


GATES = {
    "float32": Gate({"y": 1e-5, "dx": 1e-5}),
    "bf16": Gate({"y": 5e-3, "dx": 1e-2}),
    # int8 weights, float maths: the rounding of the weight, then the maths alone
    "w8a16": Gate({"y": 1e-2, "dx": 1e-2, "y_dequantized": 4e-3}),
    # W8A16 of others: the same weight rounding, whichever way their maths go
    "int8 weight": Gate({"y": 1e-2, "dx": 1.5e-2}),
    "w8a8": Gate({"y": 1.5e-2, "dx": 1.5e-2}),
    # a whole decoder layer: seven such products, with norms, attention and residuals between them
    "layer bf16": Gate({"y": 1e-2, "dx": 1.5e-2}),
    "layer int8 weight": Gate({"y": 2e-2, "dx": 2e-2}),
    "layer w8a8": Gate({"y": 3e-2, "dx": 3e-2}),
    # relative difference of the loss after the same steps on the same batches
    "training": Gate({"loss": 2e-2}),
    # int32 sums of int8 products, scaled afterwards for the comparison only
    "product": Gate({"y": 1.5e-2}),
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of the expected value, in float64."""
    expected = expected.double()
    return ((actual.double() - expected).norm() / expected.norm()).item()


def cosine(actual: Tensor, expected: Tensor) -> float:
    """Cosine of two tensors as vectors, in float64."""
    a, b = actual.double().flatten(), expected.double().flatten()
    return torch.nn.functional.cosine_similarity(a, b, dim=0, eps=1e-300).item()


def failures(kind: str, measured: Mapping[str, float]) -> list[str]:
    """Why a row must be refused, one sentence a fault; empty if its speed counts.

    Args:
        kind: key of `GATES`.
        measured: errors by the gate's names, and `da_cosine`, `db_cosine`. A bound whose value was
            not measured says nothing; a row without any measured error fails.
    """
    gate = GATES[kind]
    faults = []
    checked = 0
    for name, bound in gate.at_most.items():
        if name not in measured:
            continue
        checked += 1
        # written so that NaN fails
        if not measured[name] <= bound:
            faults.append(f"{name} error {measured[name]:.2e} > {bound:.1e} ({kind})")
    for name in ("da_cosine", "db_cosine"):
        if name in measured and not measured[name] >= gate.cosine:
            faults.append(f"{name} {measured[name]:.5f} < {gate.cosine}")
    if not checked:
        faults.append(f"no error was measured ({kind})")
    if any(math.isnan(value) for value in measured.values()) and not faults:
        faults.append("an error is NaN")
    return faults
