"""Custom operators: schema, fake, reference and autograd in Python, faster implementations from
`ftrt._C`.

Importing this package loads `ftrt._C` if it is built; `implementation_report()` says what runs, and
why.
"""

__all__ = ["dequantize_weight", "implementation_report", "int8_linear", "int8_linear_dx"]

from ftrt.ops.extension import implementation_report
from ftrt.ops.int8_linear import dequantize_weight, int8_linear, int8_linear_dx
