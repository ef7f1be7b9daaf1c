"""CUDA kernels: what one is, and how it is launched. The names below are for plugins too."""

__all__ = ["ARCHES", "Kernel", "Launch", "Signature", "is_available", "launch"]

from ftrt.kernels.availability import is_available
from ftrt.kernels.backend import launch
from ftrt.kernels.kernel import ARCHES, Kernel, Launch
from ftrt.kernels.signature import Signature
