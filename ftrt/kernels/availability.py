"""Whether kernels can be launched, for code that has torch ops to use otherwise."""

__all__ = ["is_available"]

import functools
import logging

import torch

from ftrt import config

logger = logging.getLogger(__name__)


def is_available(device: torch.device) -> bool:
    """Whether kernels can be launched on tensors of `device`, and `FTRT_CUDA` does not forbid it.

    Where a GPU lacks something else, say NVRTC, that is logged, once.
    """
    if device.type != "cuda" or config.cuda_ops() == "reference":
        return False
    return _is_complete()


@functools.cache
def _is_complete() -> bool:
    from ftrt.kernels.runtime import status

    missing = status().missing
    if missing:
        logger.warning("kernels of plugins are not used: %s", "; ".join(missing))
    return not missing
