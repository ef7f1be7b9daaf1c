"""Layers and functions a method is built from; plugins import from here."""

__all__ = ["Int8Linear", "dense_weight", "is_linear", "linear_names", "lora_forward"]

from ftrt.nn.linears import dense_weight, is_linear, linear_names
from ftrt.nn.low_rank import lora_forward
from ftrt.quantization.int8_linear import Int8Linear
