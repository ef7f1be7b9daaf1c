"""The conformance kit: what ftrt's own plugins pass and what plugin authors run in their own
tests.
"""

__all__ = [
    "assert_close",
    "check_head",
    "check_kernel",
    "check_loss",
    "check_method",
    "tolerance",
    "try_method",
]

from ftrt.testing.heads import check_head
from ftrt.testing.kernels import check_kernel
from ftrt.testing.losses import check_loss
from ftrt.testing.methods import check_method, try_method
from ftrt.testing.tolerances import assert_close, tolerance
