"""What torch's distributed wrappers are told about int8 layers."""

__all__ = ["keep_out_of_ddp"]

import itertools

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ftrt.quantization.int8_linear import Int8Linear


def keep_out_of_ddp(model: nn.Module) -> None:
    """`DistributedDataParallel(model)` leaves the int8 layers' buffers alone.

    By default it sends all buffers from rank 0 to the others at each forward pass, which for an
    int8 base is the whole model at each step, although it is frozen and every rank has loaded
    it.

    Args:
        model: what is handed to DistributedDataParallel, itself and not a part of it; without int8
            layers it is left as it is.
    """
    names = [
        f"{name}.{buffer}" if name else buffer
        for name, layer in model.named_modules()
        if isinstance(layer, Int8Linear)
        for buffer, _ in layer.named_buffers(recurse=False)
    ]
    if names:
        before = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
        ignored = list(dict.fromkeys(itertools.chain(before, names)))
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            model, ignored
        )
