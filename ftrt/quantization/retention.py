"""How much of an adapter survives when it is merged into an int8 weight.

The base W has the int8 form Wq = dequantize(quantize(W)), the merged weight W + D the form W'. What
the adapter does to the int8 model is E = W' - Wq, and the question is how well E stands for D.

    projection = <E, D> / <D, D>
    residual   = ‖E - D‖ / ‖D‖
    retained   = 1 - ‖(E - D) P‖² / ‖D P‖², not below 0

P projects x onto the inputs that the adapter answers to, the row space of D. Norms and products are
over all weights of a layer, or of all layers together.

Why `retained` is the score, and the other two are only reported. Rounding moves a weight by a whole
step or not at all, and a delta d, smaller than the step s, moves about one weight in s / d. So E is
D on average however small D is, and the projection stays near 1 while the adapter drowns in its own
rounding. The residual counts that rounding in every direction of x and is above 1 for adapters that
work: the same noise is in any int8 weight, and x sums it away except along the few directions that
the adapter reads. `retained` counts it just there: 1 is a delta that survives whole, 0 one that is
no better than none at all. For a delta without a low rank P is the identity, and retained is
1 - residual².
"""

__all__ = ["LayerRetention", "layer_retention", "total_retention"]

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ftrt.quantization.affine import dequantize
from ftrt.quantization.deferred import quantize_rows
from ftrt.quantization.granularity import PerChannel

# Directions that are looked at: more than any adapter's rank, 256 at most, so that its row space is
# found whole.
SKETCH = 264
# Of ‖D‖², the share that the row space holds; what is left is the rounding of W + D in float32.
ENERGY = 0.9999
# Of ‖D‖², what must lie in the row space that was found; less, and the delta has no low rank.
FOUND = 0.999


@dataclass(frozen=True)
class LayerRetention:
    """Sums over the weights of one layer, or of several.

    Attributes:
        name: the layer's.
        delta: ‖D‖².
        aligned: <E, D>.
        error: ‖E - D‖².
        seen: ‖D P‖².
        seen_error: ‖(E - D) P‖².
    """

    name: str
    delta: float
    aligned: float
    error: float
    seen: float
    seen_error: float

    @property
    def retained(self) -> float:
        """The share of the delta that survives, 0..1; 1 where there is none."""
        return max(0.0, 1.0 - self.seen_error / self.seen) if self.seen > 0 else 1.0

    @property
    def projection(self) -> float:
        """<E, D> / <D, D>."""
        return self.aligned / self.delta if self.delta > 0 else 1.0

    @property
    def residual(self) -> float:
        """‖E - D‖ / ‖D‖."""
        return math.sqrt(self.error / self.delta) if self.delta > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The scores by name."""
        return {
            "name": self.name,
            "retained": self.retained,
            "projection": self.projection,
            "residual": self.residual,
            "delta_norm": math.sqrt(self.delta),
        }


def layer_retention(
    name: str, base: Tensor, merged: Tensor, qweight: Tensor, scale: Tensor
) -> LayerRetention:
    """The scores of one layer.

    Args:
        name: the layer's.
        base: W (out_features, in_features), any float dtype.
        merged: W + D (out_features, in_features) float32.
        qweight: (out_features, in_features) int8 and
        scale: (out_features, 1) float32, of `merged`.
    """
    # freed weight by weight: at most three float32 copies of the layer are alive
    original = base.float()
    delta = merged.float() - original
    grid = dequantize(*quantize_rows(original, PerChannel(), where=name))
    del original
    error = dequantize(qweight, scale).sub_(grid).sub_(delta)
    del grid
    squared, wrong = _squared(delta), _squared(error)
    basis = _row_space(delta)
    seen, seen_error = _squared(delta @ basis), _squared(error @ basis)
    if seen < FOUND * squared:
        # no low rank: the adapter answers to all inputs
        seen, seen_error = squared, wrong
    return LayerRetention(
        name,
        delta=squared,
        # E = D + (E - D)
        aligned=squared + float((error.double() * delta).sum()),
        error=wrong,
        seen=seen,
        seen_error=seen_error,
    )


def total_retention(layers: Iterable[LayerRetention]) -> LayerRetention:
    """The scores of all layers together, each weighing as much as its delta."""
    sums = {"delta": 0.0, "aligned": 0.0, "error": 0.0, "seen": 0.0, "seen_error": 0.0}
    for layer in layers:
        parts = asdict(layer)
        sums = {key: value + parts[key] for key, value in sums.items()}
    return LayerRetention("all layers", **sums)


def _row_space(delta: Tensor) -> Tensor:
    """(in_features, rank): an orthonormal basis of the inputs that `delta` answers to most. Found
    from the images of random vectors, so it costs two thin products.

    Source: Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061, algorithm 4.1.
    """
    count = min(SKETCH, *delta.shape)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(delta.shape[0], count, generator=generator)
    directions, values, _ = torch.linalg.svd(delta.T @ probes, full_matrices=False)
    energy = values.double().square().cumsum(0)
    rank = int((energy < ENERGY * energy[-1]).sum()) + 1 if count else 0
    basis: Tensor = directions[:, :rank]
    return basis


def _squared(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
