"""A frozen linear layer that keeps its weight as int8."""

__all__ = ["Int8Linear"]

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ftrt.errors import UsageError
from ftrt.ops import dequantize_weight, int8_linear, pack_int8, quantize_per_token, unpack_int8
from ftrt.quantization.affine import choose_qparams, quantize
from ftrt.quantization.choices import COMPUTES, Compute, LayerChoice
from ftrt.quantization.granularity import Granularity
from ftrt.quantization.shared_input import SharedInput

# Tensors of a state dict that are never converted.
_FIXED_DTYPES = {"qweight": torch.int8, "scale": torch.float32}


class Int8Linear(nn.Module):
    """y = x dequantize(qweight, scale)ᵀ + bias, in the dtype of x; the weight is frozen.

    It is not an `nn.Linear`: code that would read or train a float weight must not take it for one.
    The weight is held once, in the panels that the kernels read; a state dict has it row-major, as
    `qweight` (out_features, in_features) int8 beside `scale`. How the layer computes is no part of
    its state dict.

    Attributes:
        packed: (⌈out_features / 16⌉, ⌈in_features / 4⌉, 16, 4) int8, buffer; see `pack_int8`.
        scale: (out_features, groups) float32, buffer; float32 also after `model.to(bfloat16)`.
        bias: (out_features) parameter that starts frozen, or None.
        compute: "w8a16" or "w8a8"; `set_compute` changes it.
        outliers: (columns) int64, buffer: columns of x that w8a8 multiplies in float; or None.
        choice: what calibration measured and recorded; None where it did not choose.
        float_dtype: the dtype the float layer has: the original one's, until the model is cast.

    Source: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2.1.
    """

    packed: Tensor
    scale: Tensor
    outliers: Tensor | None
    compute: Compute
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
        self.register_buffer("packed", pack_int8(qweight), persistent=False)
        self.register_buffer("scale", torch.ones(out_features, groups, device=device).float())
        # Holds no data: it follows the model's casts and so remembers the float dtype.
        like = torch.empty(0, dtype=dtype, device=device)
        self.register_buffer("_float_like", like, persistent=False)
        values = torch.zeros(out_features, dtype=dtype, device=device) if bias else None
        self.bias = None if values is None else nn.Parameter(values, requires_grad=False)
        self.register_buffer("outliers", None, persistent=False)
        self.compute = "w8a16"
        self.choice: LayerChoice | None = None
        self._columns: tuple[int, ...] = ()
        self._shared: SharedInput | None = None

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
        bias = None if linear.bias is None else linear.bias.detach()
        layer = cls.from_quantized(
            quantize(linear.weight, scale), scale, bias, dtype=linear.weight.dtype
        )
        return layer.train(linear.training)

    @classmethod
    def from_quantized(
        cls,
        qweight: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A layer of weights that are int8 already.

        Args:
            qweight: (out_features, in_features) int8; packed here, and not kept.
            scale: (out_features, groups) float32; kept.
            bias: (out_features) or None; kept.
            dtype: what `to_linear` gives back; the bias's by default.

        Raises:
            UsageError: shapes or dtypes do not fit each other.
        """
        fits = qweight.dim() == 2 and scale.dim() == 2 and qweight.shape[0] == scale.shape[0]
        if not fits or (qweight.dtype, scale.dtype) != tuple(_FIXED_DTYPES.values()):
            raise UsageError(
                "Int8Linear.from_quantized: qweight must be (out_features, in_features) int8 and"
                f" scale (out_features, groups) float32; got {tuple(qweight.shape)}"
                f" {qweight.dtype} and {tuple(scale.shape)} {scale.dtype}"
            )
        out_features, in_features = qweight.shape
        dtype = dtype or (None if bias is None else bias.dtype) or torch.get_default_dtype()
        groups = scale.shape[1]
        layer = cls(
            in_features, out_features, groups=groups, bias=False, device="meta", dtype=dtype
        )
        layer.packed = pack_int8(qweight)
        layer.scale = scale
        layer._float_like = torch.empty(0, dtype=dtype, device=qweight.device)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer

    def set_compute(self, compute: Compute, outliers: Sequence[int] = ()) -> None:
        """How the layer computes from here on.

        Args:
            compute: "w8a16" multiplies dequantized weights in float. "w8a8" quantizes x per token
                and multiplies int8, forward and backward.
            outliers: columns of x that w8a8 leaves out of the quantization and multiplies in float.

        Raises:
            UsageError: no such compute, w8a8 with several scales per output feature, or outliers
                that are no columns of x, stand twice, or stand with w8a16.
        """
        columns = tuple(sorted(int(column) for column in outliers))
        if compute not in COMPUTES:
            raise UsageError(
                f"Int8Linear: compute must be one of {', '.join(COMPUTES)}; got {compute!r}"
            )
        if compute == "w8a8" and self.scale.shape[1] != 1:
            raise UsageError(
                "Int8Linear: compute w8a8 needs one scale per output feature; got"
                f" {self.scale.shape[1]} groups. Quantize per_channel, or compute w8a16"
            )
        fits = len(set(columns)) == len(columns) and all(
            0 <= column < self.in_features for column in columns
        )
        if not fits or (columns and compute != "w8a8"):
            raise UsageError(
                f"Int8Linear: outliers must be columns below in_features, each once, with compute"
                f" w8a8; got {list(columns)}, in_features {self.in_features}, compute {compute!r}"
            )
        self.compute, self.choice = compute, None
        self._columns = columns
        self.outliers = torch.tensor(columns, device=self.packed.device) if columns else None

    @property
    def qweight(self) -> Tensor:
        """(out_features, in_features) int8: the weight row-major, a new tensor at each call."""
        return unpack_int8(self.packed, self.out_features, self.in_features)

    @property
    def weight(self) -> Tensor:
        """`packed`, for code that asks a linear layer's weight for its device or dtype."""
        return self.packed

    @property
    def outlier_columns(self) -> tuple[int, ...]:
        """`outliers` as numbers."""
        return self._columns

    @property
    def group_size(self) -> int:
        """Input features per scale."""
        return self.in_features // self.scale.shape[1]

    @property
    def float_dtype(self) -> torch.dtype:
        return self._float_like.dtype

    def share_input(self, shared: SharedInput | None) -> None:
        """Share what is made of x with the other layers that were given the same `shared`."""
        self._shared = shared

    def quantized_input(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """x as w8a8 multiplies it, quantized once for all layers that share it; None in w8a16.

        Returns:
            xq (rows, in_features) int8 and xscale (rows) float32, see `quantize_per_token`.
        """
        if self.compute != "w8a8":
            return None
        if self._shared is None:
            return quantize_per_token(x, self.outliers)
        return self._shared.quantize(x, self.outliers, self._columns)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), dtype of x, or under autocast its dtype.

        Raises:
            UsageError: x has another number of features.
        """
        # the op sees packed weights only, padded to a multiple of 4 input features
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise UsageError(
                f"Int8Linear: x must be (..., in_features) with in_features {self.in_features}; got"
                f" {tuple(x.shape)}"
            )
        return int8_linear(
            x,
            self.packed,
            self.scale,
            self.bias,
            compute=self.compute,
            outliers=self.outliers,
            quantized=self.quantized_input(x),
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight the layer computes with, (out_features, in_features)."""
        return dequantize_weight(self.packed, self.scale, dtype, in_features=self.in_features)

    def to_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A frozen `nn.Linear` with the dequantized weight and a copy of the bias.

        Args:
            dtype: of weight and bias; by default `float_dtype`.
        """
        dtype = dtype or self.float_dtype
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.dequantize(dtype), requires_grad=False)
        if self.bias is not None:
            bias = self.bias.detach().to(dtype, copy=True)
            linear.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        groups = self.scale.shape[1]
        granularity = "per_channel" if groups == 1 else f"per_group, group_size={self.group_size}"
        compute = "" if self.compute == "w8a16" else f", {self.compute}"
        columns = f", outliers={len(self._columns)}" if self._columns else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, {granularity}{compute}{columns}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.to(bfloat16)` casts every float buffer; a scale rounded to 8 bits would be off by
        # up to 0.4 %, so the values from before are kept and only moved.
        before = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scale.dtype != before.dtype:
            self.scale = before.to(self.scale.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}qweight"] = self.qweight

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # copy_ would convert without a word: a float weight truncated to int8 is garbage.
        for name, dtype in _FIXED_DTYPES.items():
            value = state_dict.get(prefix + name)
            if value is not None and value.dtype != dtype:
                raise UsageError(
                    f"{prefix}{name}: must be {dtype} in a state dict; got {value.dtype}"
                    f" {tuple(value.shape)}"
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # The weight is no buffer of that name, so torch neither loads it nor expects it.
        key, shape = f"{prefix}qweight", (self.out_features, self.in_features)
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        qweight = state_dict.get(key)
        if qweight is None:
            missing_keys += [key] if strict else []
        elif qweight.shape != shape:
            error_msgs.append(
                f"size mismatch for {key}: copying a param with shape {tuple(qweight.shape)} from"
                f" checkpoint, the shape in current model is {shape}."
            )
        elif local_metadata.get("assign_to_params_buffers", False):
            self.packed = pack_int8(qweight)
            self._float_like = self._float_like.new_empty(0, device=qweight.device)
        else:
            self.packed.copy_(pack_int8(qweight))
