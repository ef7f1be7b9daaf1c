"""A frozen linear layer that keeps its weight as int8."""

__all__ = ["Int8Linear"]

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ftrt.errors import UsageError
from ftrt.ops import dequantize_weight, int8_linear
from ftrt.quantization.affine import choose_qparams, quantize
from ftrt.quantization.granularity import Granularity

# Buffers that keep their dtype whatever the model is cast to.
_FIXED_DTYPES = {"qweight": torch.int8, "scale": torch.float32}


class Int8Linear(nn.Module):
    """y = x dequantize(qweight, scale)ᵀ + bias, in the dtype of x; the weight is frozen.

    It is not an `nn.Linear`: code that would read or train a float weight must not take it for one.

    Attributes:
        qweight: (out_features, in_features) int8, buffer.
        scale: (out_features, groups) float32, buffer; float32 also after `model.to(bfloat16)`.
        bias: (out_features) parameter that starts frozen, or None.
        float_dtype: the dtype the float layer has: the original one's, until the model is cast.

    Source: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2.1.
    """

    qweight: Tensor
    scale: Tensor
    _float_like: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """An empty layer for a state dict; `from_linear` makes one that has weights.

        Args:
            in_features: features of x.
            out_features: features of y.
            groups: scales per output feature; divides in_features.
            bias: whether there is one.
            device: of all tensors.
            dtype: of the bias, and of the float layer that `to_linear` gives back.
        """
        super().__init__()
        if groups < 1 or in_features % groups:
            raise UsageError(
                f"Int8Linear: groups must divide in_features; got groups {groups}, in_features"
                f" {in_features}"
            )
        self.in_features = in_features
        self.out_features = out_features
        qweight = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.register_buffer("qweight", qweight)
        self.register_buffer("scale", torch.ones(out_features, groups, device=device).float())
        # Holds no data: it follows the model's casts and so remembers the float dtype.
        like = torch.empty(0, dtype=dtype, device=device)
        self.register_buffer("_float_like", like, persistent=False)
        values = torch.zeros(out_features, dtype=dtype, device=device) if bias else None
        self.bias = None if values is None else nn.Parameter(values, requires_grad=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, granularity: Granularity, *, where: str = "") -> Self:
        """Quantize the weight of `linear`; its bias is shared, and frozen here.

        Args:
            linear: any float dtype, on any device; left as it is.
            granularity: which weights share a scale.
            where: how an error names the layer.

        Raises:
            ConfigError: the weight is not finite, or group_size does not divide in_features.
        """
        scale = choose_qparams(linear.weight, granularity, where=where or "Int8Linear.from_linear")
        return cls.from_scale(linear, scale)

    @classmethod
    def from_scale(cls, linear: nn.Linear, scale: Tensor) -> Self:
        """Like `from_linear`, with a scale (out_features, groups) that has been chosen already."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            groups=scale.shape[1],
            bias=False,
            device="meta",
            dtype=linear.weight.dtype,
        )
        layer.qweight = quantize(linear.weight, scale)
        layer.scale = scale
        layer._float_like = linear.weight.detach().new_empty(0)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return layer.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The int8 `qweight`, for code that asks a linear layer's weight for its device or
        dtype."""
        return self.qweight

    @property
    def group_size(self) -> int:
        """Input features per scale."""
        return self.in_features // self.scale.shape[1]

    @property
    def float_dtype(self) -> torch.dtype:
        return self._float_like.dtype

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), dtype of x, or under autocast its dtype."""
        return int8_linear(x, self.qweight, self.scale, self.bias)

    def dequantize(self) -> Tensor:
        """The weight the layer computes with, (out_features, in_features) float32."""
        return dequantize_weight(self.qweight, self.scale)

    def to_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A frozen `nn.Linear` with the dequantized weight and a copy of the bias.

        Args:
            dtype: of weight and bias; by default `float_dtype`.
        """
        dtype = dtype or self.float_dtype
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        weight = dequantize_weight(self.qweight, self.scale, dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            bias = self.bias.detach().to(dtype, copy=True)
            linear.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        groups = self.scale.shape[1]
        granularity = "per_channel" if groups == 1 else f"per_group, group_size={self.group_size}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, {granularity}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.to(bfloat16)` casts every float buffer; a scale rounded to 8 bits would be off by
        # up to 0.4 %, so the values from before are kept and only moved.
        before = {name: self._buffers[name] for name in _FIXED_DTYPES}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, dtype in _FIXED_DTYPES.items():
            old, new = before[name], self._buffers[name]
            if old is not None and new is not None and new.dtype != dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # copy_ would convert without a word: a float weight truncated to int8 is garbage.
        for name, dtype in _FIXED_DTYPES.items():
            value = state_dict.get(prefix + name)
            if value is not None and value.dtype != dtype:
                raise UsageError(
                    f"{prefix}{name}: must be {dtype} in a state dict; got {value.dtype}"
                    f" {tuple(value.shape)}"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
