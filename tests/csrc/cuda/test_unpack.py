"""The packed weight as rows, on the emulated device."""

import pytest
import torch
from emulated import EmulatedBackend
from rows import DTYPES, generator, random_rows, unaligned, untouched

from ftrt.kernels.backend import launch, use_backend
from ftrt.kernels.catalog import UNPACK, unpack_grid, unpack_shared_bytes
from ftrt.ops import pack_int8

OUTPUTS = tuple(DTYPES)
SIZES = [(1, 1), (7, 65), (17, 111), (64, 128), (111, 7), (130, 260), (65, 520)]


def run(weight, scale, output, *, transpose, first=0, count=None, out=None, seed=0):
    """Output features first to first + count, (count, in_features) or the other way round."""
    out_features, in_features = weight.shape
    count = out_features - first if count is None else count
    packed = pack_int8(weight)
    if out is None:
        shape = (in_features, count) if transpose else (count, in_features)
        out = torch.empty(shape, dtype=DTYPES[output])
    with use_backend(EmulatedBackend(seed)):
        launch(
            UNPACK.variant(FTRT_OUTPUT=output, FTRT_TRANSPOSE=int(transpose)),
            unpack_grid(count, in_features, transpose=transpose),
            unpack_shared_bytes(),
            *(packed, packed.shape[1], scale, 1 if scale is None else scale.shape[1]),
            *(in_features, first, count, out, out.stride(0)),
        )
    return out


def expected(weight, scale, output, transpose):
    if scale is None:
        rows = weight
    else:
        grouped = weight.float().view(weight.shape[0], scale.shape[1], -1)
        rows = (grouped * scale.unsqueeze(2)).view(weight.shape).to(DTYPES[output])
    return rows.t() if transpose else rows


def scales(out_features, groups, output):
    if output == "int8":
        return None
    return torch.rand(out_features, groups, generator=generator(1)) / 127


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("transpose", [False, True])
def test_weights_of_any_size_and_alignment(output, transpose):
    for out_features, in_features in SIZES:
        weight = random_rows(out_features, in_features, "int8")
        scale = scales(out_features, 1, output)
        want = expected(weight, scale, output, transpose)

        assert torch.equal(run(weight, scale, output, transpose=transpose), want)
        out = unaligned(torch.zeros_like(want))
        assert torch.equal(run(weight, scale, output, transpose=transpose, out=out), want)
        assert untouched(out)


@pytest.mark.parametrize("output", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("group_size", [1, 3, 5, 32, 128])
def test_a_scale_for_each_group(output, transpose, group_size):
    weight = random_rows(20, 3 * group_size, "int8")
    scale = scales(20, 3, output)

    out = run(weight, scale, output, transpose=transpose)

    assert torch.equal(out, expected(weight, scale, output, transpose))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("first", "count"), [(0, 16), (16, 1), (48, 37), (80, 31), (96, 15)])
def test_some_of_the_output_features(output, transpose, first, count):
    weight = random_rows(111, 70, "int8")
    scale = scales(111, 2, output)

    out = run(weight, scale, output, transpose=transpose, first=first, count=count)

    part = slice(first, first + count)
    scale = None if scale is None else scale[part]
    assert torch.equal(out, expected(weight[part], scale, output, transpose))


def test_there_and_back_with_every_order_of_threads():
    weight = random_rows(130, 131, "int8")

    for seed in range(3):
        assert torch.equal(run(weight, None, "int8", transpose=False, seed=seed), weight)
        assert torch.equal(run(weight, None, "int8", transpose=True, seed=seed), weight.t())
