"""Packed int8 weights: the layout to the letter, and back."""

import pytest
import torch
from op_subjects import SIZES, weight_of

from ftrt.ops import dequantize_weight, pack_int8, unpack_int8


@pytest.mark.parametrize("size", [*SIZES, (16, 4), (15, 3), (32, 8), (17, 5), (16, 1), (1, 4)])
def test_layout_is_that_of_the_formula_and_padding_is_zero(size):
    q = weight_of(*size)[0]
    packed = pack_int8(q)
    panels, depths = -(-size[0] // 16), -(-size[1] // 4)
    assert packed.shape == (panels, depths, 16, 4) and packed.is_contiguous()
    expected = torch.zeros(panels, depths, 16, 4, dtype=torch.int8)
    for n in range(size[0]):
        for k in range(size[1]):
            expected[n // 16, k // 4, n % 16, k % 4] = q[n, k]
    assert torch.equal(packed, expected)
    assert torch.equal(unpack_int8(packed, *size), q)


@pytest.mark.parametrize("size", [(32, 64), (33, 65), (16, 4)])
def test_any_strides_and_offsets_are_packed_alike(size):
    q = weight_of(*size)[0]
    packed = pack_int8(q)
    assert torch.equal(pack_int8(q.t().contiguous().t()), packed)
    buffer = torch.zeros(q.numel() + 1, dtype=torch.int8)
    shifted = buffer[1:].view(size).copy_(q)
    assert torch.equal(pack_int8(shifted), packed)


def test_the_panels_are_a_copy():
    for size in ((16, 4), (16, 64), (33, 65)):
        q = weight_of(*size)[0]
        packed = pack_int8(q)
        back = unpack_int8(packed, *size)
        assert back.untyped_storage().data_ptr() != packed.untyped_storage().data_ptr()
        before = packed.clone()
        q.zero_()
        assert torch.equal(packed, before)


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dequantized_weight_is_that_of_the_matrix(groups, dtype):
    qweight, scale, weight = weight_of(33, 65, groups)
    packed = pack_int8(qweight)
    assert torch.equal(dequantize_weight(qweight, scale, torch.float64), weight)
    for q in (qweight, packed):
        got = dequantize_weight(q, scale, dtype, in_features=65)
        exact = weight if dtype == torch.float64 else weight.float().to(dtype)
        assert torch.equal(got, exact)


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (
            lambda: pack_int8(torch.ones(2, 3)),
            "pack_int8: q must be (out_features, in_features) int8; got q (2, 3) float32",
        ),
        (
            lambda: unpack_int8(torch.ones(1, 2, 16, 4, dtype=torch.int8), 17, 8),
            "unpack_int8: packed must be (out_features / 16, in_features / 4, 16, 4) int8; got"
            " packed (1, 2, 16, 4) int8, out_features 17, in_features 8",
        ),
        (
            lambda: dequantize_weight(torch.ones(1, 2, 16, 4, dtype=torch.int8), torch.ones(5, 1)),
            "dequantize_weight: in_features must be given with a packed qweight; got qweight (1, 2,"
            " 16, 4) int8",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_shape(run, text):
    with pytest.raises(RuntimeError) as caught:
        run()
    assert str(caught.value) == text
