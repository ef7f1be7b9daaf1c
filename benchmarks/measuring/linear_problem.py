"""One linear layer with a low-rank update, its random operands, and what is exactly right."""

from dataclasses import dataclass

import torch
from torch import Tensor

from measuring.gates import cosine, relative_error

# rows of y and of dx that are compared with float64; dA and dB are compared whole
CHECKED_ROWS = 48


@dataclass(frozen=True)
class Problem:
    """y = x Wᵀ + scaling · (x Aᵀ) Bᵀ with normal random operands.

    Attributes:
        weight: (out_features, in_features), `dtype`: the true weight.
        qweight, scale: the weight in int8, row-major, and its (out_features, 1) float32 scale.
        a: (rank, in_features), b: (out_features, rank), float32, not zero.
    """

    weight: Tensor
    qweight: Tensor
    scale: Tensor
    a: Tensor
    b: Tensor
    scaling: float

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and of the float weight."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of every operand."""
        return self.weight.device

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]


def make_problem(
    out_features: int,
    in_features: int,
    *,
    rank: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 20251,
) -> Problem:
    """A problem whose y is about normal, a fifth of it from the update.

    `seed` is far from what scripts give torch's own generator: an x drawn from the same stream as
    the weight would be the weight again, and y far from normal.
    """
    from ftrt.ops import quantize_per_channel

    generator = torch.Generator(device).manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, device=device)

    weight = (normal(out_features, in_features) * in_features**-0.5).to(dtype)
    a = normal(rank, in_features) * in_features**-0.5
    b = normal(out_features, rank) * (0.1 * rank**-0.5)
    qweight, scale = quantize_per_channel(weight)
    return Problem(weight, qweight, scale, a, b, 2.0)


def random_rows(
    count: int,
    rows: int,
    features: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Buffers (rows, features) of fresh normal values; the global generator moves on."""
    return [torch.randn(rows, features, device=device).to(dtype) for _ in range(count)]


class Exact:
    """Float64 results for one x and grad, on sampled rows where the whole would take minutes."""

    def __init__(self, problem: Problem, x: Tensor, grad: Tensor) -> None:
        self.problem, self.x, self.grad = problem, x, grad
        count = min(CHECKED_ROWS, x.shape[0])
        generator = torch.Generator().manual_seed(1)
        chosen = torch.randperm(x.shape[0], generator=generator)[:count].sort().values
        self.rows = chosen.to(x.device)
        self._x64, self._grad64 = x[self.rows].double(), grad[self.rows].double()
        self._a, self._b = problem.a.double(), problem.b.double()
        weight = problem.weight.double()
        self._base = self._x64 @ weight.T
        rounded = problem.qweight.double() * problem.scale.double()
        self._rounded = self._x64 @ rounded.T
        self._update = problem.scaling * (self._x64 @ self._a.T) @ self._b.T
        # (grad b) in float64 without a float64 copy of grad for every row at once
        hidden = torch.cat([part.double() @ self._a.T for part in x.split(512)])
        ds = problem.scaling * torch.cat([part.double() @ self._b for part in grad.split(512)])
        self._dx = self._grad64 @ weight + ds[self.rows] @ self._a
        self._db = problem.scaling * sum(
            g.double().T @ h for g, h in zip(grad.split(512), hidden.split(512), strict=True)
        )
        self._da = sum(d.T @ p.double() for d, p in zip(ds.split(512), x.split(512), strict=True))

    def forward_errors(self, y: Tensor, *, updated: bool) -> dict[str, float]:
        """Errors of y against the true weight's product and the rounded weight's."""
        update = self._update if updated else 0.0
        rows = y[self.rows]
        return {
            "y": relative_error(rows, self._base + update),
            "y_dequantized": relative_error(rows, self._rounded + update),
        }

    def gradient_errors(self, dx: Tensor, da: Tensor, db: Tensor) -> dict[str, float]:
        """Error of dx, cosines of dA and dB."""
        return {
            "dx": relative_error(dx[self.rows], self._dx),
            "da_cosine": cosine(da, self._da),
            "db_cosine": cosine(db, self._db),
        }
