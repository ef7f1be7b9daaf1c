"""Every int8 op once, forward and backward, on small and ragged shapes: for compute-sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/gpu/sanitized.py [--device cuda]

Operands are made on the host, so that few kernels but ours run. Results are compared with the
references' on the CPU; a difference is exit code 1.
"""

import sys
from pathlib import Path

# the folder that holds `gpu` and `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
from contextlib import nullcontext
from itertools import product

import torch
from measuring.gates import relative_error
from torch import Tensor

from ftrt import ops

# (rows, out_features, in_features, rank): one tile, and every edge ragged
SHAPES = [(32, 64, 64, 16), (33, 130, 68, 17), (1, 16, 80, 1)]
BOUND = 2e-2


def run(
    device: torch.device,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    compute: str,
    *,
    as_float: bool = False,
) -> list[Tensor]:
    """y, dx, dA and dB of one layer with bias, outlier columns and dropout, on the host.

    Args:
        device: where it is computed.
        shape: rows, out_features, in_features, rank.
        dtype: of x, and what its values are rounded to.
        compute: "w8a8" or "w8a16".
        as_float: compute the same values in float32.
    """
    rows, out_features, in_features, rank = shape
    generator = torch.Generator().manual_seed(3)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    weight, bias = normal(out_features, in_features), normal(out_features)
    x, grad = (normal(rows, width).to(dtype) for width in (in_features, out_features))
    dtype = torch.float32 if as_float else dtype
    a, b = normal(rank, in_features), normal(out_features, rank)
    qweight, scale = ops.quantize_per_channel(weight)
    outliers = torch.tensor([0, in_features - 1]) if compute == "w8a8" else None
    leaves = [t.to(device).requires_grad_() for t in (x.to(dtype), a, b)]
    y = ops.int8_lora_linear(
        leaves[0],
        ops.pack_int8(qweight).to(device),
        scale.to(device),
        bias.to(device, dtype),
        *leaves[1:],
        0.5,
        compute=compute,
        outliers=None if outliers is None else outliers.to(device),
        dropout=0.25,
        seed=torch.tensor(1234567, device=device),
    )
    y.backward(grad.to(device, dtype))
    return [t.detach().float().cpu() for t in (y, *(leaf.grad for leaf in leaves))]


def main() -> int:
    """Every shape, dtype and path; 1 if a result is wrong."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="cuda")
    device = torch.device(options.parse_args().device)
    around = {"": nullcontext}
    # the CPU's kernels take no float16
    dtypes = [torch.bfloat16, torch.float32]
    if device.type == "cuda":
        from gpu.paths import PATHS, forced

        dtypes.append(torch.float16)
        around = {f" {path}": forced(path, device) for path in PATHS}
    worst = 0.0
    for shape, dtype in product(SHAPES, dtypes):
        # the library takes whole tiles alone, and anything else would be the own product again
        contexts = around if shape == SHAPES[0] else {"": nullcontext}
        for compute, (path, context) in product(("w8a8", "w8a16"), contexts.items()):
            wanted = run(torch.device("cpu"), shape, dtype, compute, as_float=True)
            with context():
                found = run(device, shape, dtype, compute)
            errors = [relative_error(f, w) for f, w in zip(found, wanted, strict=True)]
            # written so that NaN counts
            if not max(errors) <= BOUND:
                print(f"wrong: {shape} {dtype} {compute}{path}: {errors}")
                worst = float("inf")
            worst = max(worst, *errors)
    print(f"sanitized: largest relative error {worst:.2e}")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
