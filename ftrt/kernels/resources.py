"""The most dynamic shared memory that a kernel is launched with."""

__all__ = ["most_shared_bytes"]

import torch

from ftrt.errors import UsageError
from ftrt.kernels import catalog, gemm
from ftrt.kernels.cubin import SHARED_LIMIT_BYTES
from ftrt.kernels.kernel import Kernel

# Wider than the layers of any language model so far, and the largest rank that is fused.
_MOST_FEATURES = 2**17
_MOST_RANK = 64


def most_shared_bytes(kernel: Kernel, arch: str) -> int:
    """Dynamic shared memory of the largest problem on `arch`; of a plugin's kernel, its example's.

    Raises:
        UsageError: the catalog has no kernel of that name, and it has no example.
    """
    if kernel.example is not None:
        return kernel.example(torch.device("cpu")).shared_bytes
    match kernel.name:
        case "quantize_rows":
            return catalog.quantize_rows_shared_bytes(_MOST_FEATURES, 1)
        case "quantize_project":
            limit = SHARED_LIMIT_BYTES[arch]
            cached = catalog.quantize_project_cached_features(_MOST_FEATURES, 1, limit)
            return catalog.quantize_project_shared_bytes(_MOST_FEATURES, 1, cached)
        case "thin_gradient":
            return catalog.thin_gradient_shared_bytes(_MOST_RANK, kernel.defines["FTRT_INPUT"])
        case "unpack":
            return catalog.unpack_shared_bytes()
        case "w8a8_gemm":
            return gemm.w8a8_gemm_shared_bytes(kernel)
        case "pack_factor" | "scale_product":
            return 0
    raise UsageError(f"{kernel.name}: must be of ftrt.kernels.catalog, or have an example")
