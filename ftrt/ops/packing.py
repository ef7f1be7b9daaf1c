"""Int8 weights in the panels that every kernel reads, and in float.

packed[p, g, j, d] = q[16 p + j, 4 g + d], zero where out of range: 16 output features side by side,
4 input features of each in a row. One layout serves every instruction set and both directions: the
4 bytes are what a dot-product instruction takes at once (VNNI, AMX), and 16 of them fill a register
or a tile row.
"""

__all__ = ["DEPTH", "PANEL", "dequantize_weight", "pack_int8", "unpack_int8"]

import torch
from torch import Tensor
from torch.nn import functional as F

from ftrt.ops.checks import describe, fail

PANEL = 16
DEPTH = 4


def pack_int8(q: Tensor) -> Tensor:
    """packed[p, g, j, d] = q[16 p + j, 4 g + d].

    Args:
        q: (out_features, in_features) int8, any strides.

    Returns:
        (⌈out_features / 16⌉, ⌈in_features / 4⌉, 16, 4) int8, contiguous.

    Raises:
        RuntimeError: q is no int8 matrix; the message has its shape and dtype.
    """
    if q.dim() != 2 or q.dtype != torch.int8:
        fail("pack_int8", "q must be (out_features, in_features) int8", describe("q", q))
    out_features, in_features = q.shape
    if q.numel() == 0:
        return q.new_empty(-(-out_features // PANEL), -(-in_features // DEPTH), PANEL, DEPTH)
    rows = q.contiguous()
    if out_features % PANEL or in_features % DEPTH:
        rows = F.pad(rows, (0, -in_features % DEPTH, 0, -out_features % PANEL))
    elif torch.compiler.is_compiling() or rows.storage_offset() % DEPTH:
        # A view as int32 needs an aligned start, which a compiler does not tell.
        rows = rows.clone()
    panels, depths = rows.shape[0] // PANEL, rows.shape[1] // DEPTH
    # Moved as int32, four weights at a time.
    words = rows.view(torch.int32).view(panels, PANEL, depths).transpose(1, 2)
    # contiguous() would keep the odd strides of a dimension of size 1, which no view as int8 takes.
    packed = words.clone(memory_format=torch.contiguous_format)
    return packed.view(torch.int8).view(panels, depths, PANEL, DEPTH)


def unpack_int8(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """q with pack_int8(q) == packed.

    Args:
        packed: (⌈out_features / 16⌉, ⌈in_features / 4⌉, 16, 4) int8, contiguous.
        out_features, in_features: shape of q.

    Returns:
        (out_features, in_features) int8, contiguous.

    Raises:
        RuntimeError: packed has not that shape; the message has it.
    """
    panels, depths = -(-out_features // PANEL), -(-in_features // DEPTH)
    if packed.shape != (panels, depths, PANEL, DEPTH) or packed.dtype != torch.int8:
        fail(
            "unpack_int8",
            "packed must be (out_features / 16, in_features / 4, 16, 4) int8",
            f"{describe('packed', packed)}, out_features {out_features}, in_features {in_features}",
        )
    words = packed.contiguous().view(torch.int32).view(panels, depths, PANEL).transpose(1, 2)
    rows = words.clone(memory_format=torch.contiguous_format)
    q = rows.view(torch.int8).view(panels * PANEL, depths * DEPTH)
    return q[:out_features, :in_features].contiguous()


def dequantize_weight(
    qweight: Tensor,
    scale: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    in_features: int | None = None,
) -> Tensor:
    """weight[n, k] = qweight[n, k] · scale[n, k // group_size], in float32 or wider, then cast.

    Args:
        qweight: (out_features, in_features) int8, or packed by `pack_int8`.
        scale: (out_features, groups) float32.
        dtype: of the result.
        in_features: of a packed qweight, which is padded to a multiple of 4.

    Returns:
        (out_features, in_features).

    Raises:
        RuntimeError: qweight is packed and in_features is not given, or does not fit it.
    """
    if qweight.dim() == 4:
        if in_features is None:
            fail(
                "dequantize_weight",
                "in_features must be given with a packed qweight",
                describe("qweight", qweight),
            )
        qweight = unpack_int8(qweight, scale.shape[0], in_features)
    wide = torch.promote_types(dtype, torch.float32)
    groups = (scale.shape[0], scale.shape[1], qweight.shape[1] // scale.shape[1])
    weight = qweight.to(wide).reshape(groups).mul_(scale.to(wide).unsqueeze(2))
    return weight.reshape(qweight.shape).to(dtype)
