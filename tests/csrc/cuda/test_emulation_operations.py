"""What the emulated operations compute, on random operands.

Where an element lies in the registers of a warp is written down here once more, as the PTX ISA has
it for mma.m16n8k32, mma.m16n8k16 and ldmatrix (sections 9.7.14.5.8 to .11 and .15), element by
element rather than register by register.
"""

import itertools

import pytest
import torch
from tiny_kernels import TinyKernels

LANES = range(32)

# Lane l reads words 16 l to 16 l + 15 of x and writes those of y.
PRELUDE = """
#define IN(k) x[16 * lane + (k)]
#define OUT(k) y[16 * lane + (k)]
#define HALVES(type)                                                            \\
  float c[4];                                                                   \\
  for (int k = 0; k < 4; ++k) c[k] = ptx::float_of_bits(IN(6 + k));             \\
  ptx::multiply(c, {IN(0), IN(1), IN(2), IN(3)}, IN(4), IN(5), type{});         \\
  for (int k = 0; k < 4; ++k) OUT(k) = ptx::float_bits(c[k]);
#define MATRICES(load)                                                          \\
  for (uint32 k = 0; k < 4; ++k) {                                              \\
    ptx::store_shared_128(base + 64 * lane + 16 * k,                            \\
                          {IN(4 * k), IN(4 * k + 1), IN(4 * k + 2), IN(4 * k + 3)}); \\
  }                                                                             \\
  ptx::barrier();                                                               \\
  /* rows in another order than they lie in */                                  \\
  const uint4 m = load(base + 16 * ((5 * lane + 3) % 32));                      \\
  OUT(0) = m.x; OUT(1) = m.y; OUT(2) = m.z; OUT(3) = m.w;
"""

BODIES = {
    "multiply_int8": "int c[4]; for (int k = 0; k < 4; ++k) c[k] = static_cast<int>(IN(6 + k));"
    "ptx::multiply_int8(c, {IN(0), IN(1), IN(2), IN(3)}, IN(4), IN(5));"
    "for (int k = 0; k < 4; ++k) OUT(k) = static_cast<uint32>(c[k]);",
    "multiply float16": "HALVES(Float16)",
    "multiply bfloat16": "HALVES(BFloat16)",
    "load_matrices": "MATRICES(ptx::load_matrices)",
    "load_matrices_transposed": "MATRICES(ptx::load_matrices_transposed)",
    "exchange": "for (int k = 0; k < 16; ++k) {"
    "  OUT(k) = ptx::float_bits(ptx::exchange(ptx::float_of_bits(IN(k)), (2 * k + 1) % 32));"
    "}",
    "copy": "ptx::copy_async_16(base + 16 * lane, x + 16 * lane, lane % 17);"
    "ptx::commit_copies(); ptx::wait_copies<0>();"
    "const uint4 v = ptx::load_shared_128(base + 16 * lane);"
    "OUT(0) = v.x; OUT(1) = v.y; OUT(2) = v.z; OUT(3) = v.w;",
    # a warp's words of shared memory in all widths
    "shared": "ptx::store_shared_64(base + 8 * lane, {IN(0), IN(1)}); ptx::barrier();"
    "ptx::store_shared_16(base + 8 * lane + 2, IN(2)); ptx::barrier();"
    "const uint2 v = ptx::load_shared_64(base + 8 * (lane ^ 9)); OUT(0) = v.x; OUT(1) = v.y;"
    "OUT(2) = ptx::load_shared_32(base + 8 * (lane ^ 9) + 4); ptx::barrier();"
    "ptx::store_shared_f32(base + 4 * lane, ptx::float_of_bits(IN(3))); ptx::barrier();"
    "OUT(3) = ptx::float_bits(ptx::load_shared_f32(base + 4 * (lane ^ 3)));",
    "permute_bytes": "OUT(0) = ptx::permute_bytes(IN(0), IN(1), IN(2) & 0x7777u);",
    "widen_int8": "const uint2 f = ptx::widen_int8(IN(0), Float16{});"
    "const uint2 b = ptx::widen_int8(IN(0), BFloat16{});"
    "OUT(0) = f.x; OUT(1) = f.y; OUT(2) = b.x; OUT(3) = b.y;",
    # the two halves of a word, through float
    "widen halves": "for (int k = 0; k < 16; k += 2) {"
    "  OUT(k) = ptx::float_bits(ptx::widen_half(IN(k), Float16{}));"
    "  OUT(k + 1) = ptx::float_bits(ptx::widen_half(IN(k), BFloat16{}));"
    "}",
    "pack halves": "for (int k = 0; k < 16; k += 2) {"
    "  const float low = ptx::float_of_bits(IN(k)), high = ptx::float_of_bits(IN(k + 1));"
    "  OUT(k) = ptx::pack_halves(low, high, Float16{});"
    "  OUT(k + 1) = ptx::pack_halves(low, high, BFloat16{});"
    "}",
    "round": "for (int k = 0; k < 16; k += 2) {"
    "  OUT(k) = static_cast<uint32>(ptx::round_to_int(ptx::float_of_bits(IN(k))));"
    "  OUT(k + 1) = ptx::round_to_byte(ptx::float_of_bits(IN(k + 1))) & 0xff;"
    "}",
    "functions": "OUT(0) = ptx::float_bits(ptx::exponential(ptx::float_of_bits(IN(0))));"
    "OUT(1) = ptx::float_bits(ptx::square_root(ptx::float_of_bits(IN(1))));",
    "places": "const uint32 bx = ptx::block_index_x(), by = ptx::block_index_y();"
    "const uint32 block = bx + by * ptx::block_count_x();"
    "y[32 * block + i] = i + 100 * bx + 1000 * by + 10000 * ptx::block_count_y();",
    "add_global": "ptx::add_global(reinterpret_cast<float*>(y), static_cast<float>(lane));",
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operations")
    return TinyKernels(folder, BODIES, element="uint32", prelude=PRELUDE, threads=32)


def run(kernels, name, x):
    """x and the result: (32, 16), int32."""
    results = []
    for seed in range(3):
        y = torch.zeros(32, 16, dtype=torch.int32)
        kernels.run(name, x.contiguous(), y, seed=seed, shared_bytes=2048)
        results.append(y)
    assert all(torch.equal(y, results[0]) for y in results)
    return results[0]


def random_words():
    return torch.randint(-(2**31), 2**31, (32, 16), dtype=torch.int64).to(torch.int32)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def place_c(lane, i):
    return lane // 4 + (8 if i >= 2 else 0), 2 * (lane % 4) + i % 2


def place_a_int8(lane, i):
    row = lane // 4 + (0 if i < 4 or 8 <= i < 12 else 8)
    return row, 4 * (lane % 4) + i % 4 + (16 if i >= 8 else 0)


def place_b_int8(lane, i):
    return 4 * (lane % 4) + i % 4 + (16 if i >= 4 else 0), lane // 4


def place_a_half(lane, i):
    row = lane // 4 + (0 if i < 2 or 4 <= i < 6 else 8)
    return row, 2 * (lane % 4) + i % 2 + (8 if i >= 4 else 0)


def place_b_half(lane, i):
    return 2 * (lane % 4) + i % 2 + (8 if i >= 2 else 0), lane // 4


def fragments(matrix, place, count):
    """(32, count): the elements that each lane has, in the order of its registers."""
    places = [place(lane, i) for lane in LANES for i in range(count)]
    assert len(set(places)) == matrix.numel() == len(places), "each element has one place"
    return torch.stack([matrix[p] for p in places]).reshape(32, count)


def words(elements):
    """The registers, int32, that hold neighbours of 8 or 16 bits."""
    return elements.contiguous().view(torch.int32)


def operands(a, b, c, place_a, place_b):
    x = torch.zeros(32, 16, dtype=torch.int32)
    x[:, :4] = words(fragments(a, place_a, a.numel() // 32))
    x[:, 4:6] = words(fragments(b, place_b, b.numel() // 32))
    x[:, 6:10] = words(fragments(c, place_c, 4))
    return x


def test_int8_products_are_exact(kernels):
    for _ in range(10):
        a = torch.randint(-128, 128, (16, 32), dtype=torch.int8)
        b = torch.randint(-128, 128, (32, 8), dtype=torch.int8)
        c = torch.randint(-(2**30), 2**30, (16, 8), dtype=torch.int32)
        y = run(kernels, "multiply_int8", operands(a, b, c, place_a_int8, place_b_int8))
        expected = (c.long() + a.long() @ b.long()).to(torch.int32)
        assert torch.equal(y[:, :4], fragments(expected, place_c, 4))


def test_int8_products_wrap(kernels):
    a, b = (torch.full(shape, 127, dtype=torch.int8) for shape in ((16, 32), (32, 8)))
    c = torch.full((16, 8), 2**31 - 1, dtype=torch.int32)
    y = run(kernels, "multiply_int8", operands(a, b, c, place_a_int8, place_b_int8))
    assert (y[:, :4] == 2**31 - 1 + 32 * 127**2 - 2**32).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_products_of_halves_are_rounded_once(kernels, dtype):
    for _ in range(10):
        a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
        c = torch.randn(16, 8)
        x = operands(a, b, c, place_a_half, place_b_half)
        y = run(kernels, f"multiply {str(dtype).removeprefix('torch.')}", x)
        exact = c.double() + a.double() @ b.double()
        expected = fragments(exact, place_c, 4)
        got = y[:, :4].contiguous().view(torch.float32)
        # sums in double in another order may end on the other side of a tie
        assert ((got.double() - expected).abs() <= 2**-24 * (1 + 1e-6) * expected.abs()).all()


def test_products_of_halves_pass_on_infinity_and_nan(kernels):
    a, b, c = torch.ones(16, 16), torch.ones(16, 8), torch.zeros(16, 8)
    a[3, 5], a[4, 6], c[5, 1] = torch.inf, torch.nan, -torch.inf
    x = operands(a.half(), b.half(), c, place_a_half, place_b_half)
    y = run(kernels, "multiply float16", x)[:, :4].contiguous().view(torch.float32)
    expected = fragments(c + a @ b, place_c, 4)
    assert torch.equal(y.nan_to_num(7.5), expected.nan_to_num(7.5))


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_hands_each_lane_its_elements(kernels, transposed):
    x = random_words()
    rows = x.view(torch.int16).reshape(128, 8)  # 16 bytes of shared memory each
    order = torch.tensor([(5 * lane + 3) % 32 for lane in LANES])
    matrices = rows[order].reshape(4, 8, 8)
    if transposed:
        matrices = matrices.transpose(1, 2)
    expected = torch.empty(32, 4, 2, dtype=torch.int16)
    for lane, i, k in itertools.product(LANES, range(4), range(2)):
        expected[lane, i, k] = matrices[i, lane // 4, 2 * (lane % 4) + k]
    y = run(kernels, "load_matrices" + "_transposed" * transposed, x)
    assert torch.equal(y[:, :4], words(expected).reshape(32, 4))


def test_shuffles(kernels):
    x = torch.randn(32, 16)
    y = run(kernels, "exchange", x.view(torch.int32)).view(torch.float32)
    lanes = torch.arange(32)
    for k in range(16):
        assert torch.equal(y[:, k], x[lanes ^ (2 * k + 1) % 32, k])


def test_copies_fill_up_with_zeros(kernels):
    x = random_words()
    got = run(kernels, "copy", x)[:, :4].contiguous().view(torch.uint8)
    source = x.view(torch.uint8)[:, :16]
    for lane in LANES:
        assert torch.equal(got[lane, : lane % 17], source[lane, : lane % 17])
        assert not got[lane, lane % 17 :].any()


def test_shared_memory_keeps_what_is_stored_in_any_width(kernels):
    x = random_words()
    y = run(kernels, "shared", x)
    lanes = torch.arange(32) ^ 9
    halves = x.view(torch.int16)
    first = torch.stack([halves[:, 0], halves[:, 4]], 1)
    assert torch.equal(y[:, 0], words(first).reshape(32)[lanes])
    assert torch.equal(y[:, 1], x[lanes, 1]) and torch.equal(y[:, 2], x[lanes, 1])
    assert torch.equal(y[:, 3], x[torch.arange(32) ^ 3, 3])


def test_bytes_are_permuted_by_the_selector(kernels):
    x = random_words()
    y = run(kernels, "permute_bytes", x).view(torch.uint8)
    source = x.view(torch.uint8)[:, :8]
    for lane in LANES:
        selector = x[lane, 2].item()
        for i in range(4):
            assert y[lane, i] == source[lane, selector >> 4 * i & 7]


def test_every_int8_widens_exactly(kernels):
    every = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).view(torch.int32)
    for part in every.reshape(-1, 32):
        x = torch.zeros(32, 16, dtype=torch.int32)
        x[:, 0] = part
        y = run(kernels, "widen_int8", x)
        for dtype, columns in ((torch.float16, y[:, :2]), (torch.bfloat16, y[:, 2:4])):
            values = columns.contiguous().view(dtype).reshape(-1)
            assert torch.equal(values.to(torch.int8), part.view(torch.int8))


HALF_BITS = torch.arange(65536, dtype=torch.int32).reshape(-1, 32, 8)


def test_every_half_widens_as_in_torch(kernels):
    for bits in HALF_BITS:
        x = torch.zeros(32, 16, dtype=torch.int32)
        x[:, ::2] = bits
        y = run(kernels, "widen halves", x).view(torch.float32)
        for k, dtype in enumerate((torch.float16, torch.bfloat16)):
            expected = bits.to(torch.int16).view(dtype).float()
            assert torch.equal(y[:, k::2].isnan(), expected.isnan())
            assert torch.equal(y[:, k::2].nan_to_num(7.5), expected.nan_to_num(7.5))


def neighbourhoods():
    """All halves, what lies between two of them, and that a little up and down: all ties."""
    values = []
    for dtype in (torch.float16, torch.bfloat16):
        half = HALF_BITS.to(torch.int16).view(dtype).reshape(-1)
        finite = half[half.isfinite()].float().unique()
        middle = (finite[1:].double() + finite[:-1].double()).div(2).float()
        beside = [torch.nextafter(middle, torch.tensor(s * torch.inf)) for s in (-1.0, 1.0)]
        values += [finite, middle, *beside]
    largest = torch.tensor([65519.0, 65520.0, -65520.0, 3.4028e38, torch.inf, -torch.inf])
    values = torch.cat([*values, largest])
    return torch.nn.functional.pad(values, (0, -values.numel() % 512)).reshape(-1, 32, 16)


def test_floats_round_to_halves_as_in_torch(kernels):
    for x in neighbourhoods():
        y = torch.zeros(32, 16, dtype=torch.int32)
        kernels.run("pack halves", x.contiguous().view(torch.int32), y)
        for k, dtype in enumerate((torch.float16, torch.bfloat16)):
            expected = words(x.to(dtype))
            assert torch.equal(y[:, k::2], expected)


def test_nan_rounds_to_the_nan_of_the_hardware(kernels):
    nans = torch.tensor([0x7FC00000, 0x7F800001, -0x400000, -1], dtype=torch.int32)
    y = run(kernels, "pack halves", nans.repeat(32, 4))
    assert (y == 0x7FFF7FFF).all()


def test_rounding_to_integers(kernels):
    x = torch.randn(32, 16) * 1000
    x[:, 1::2] = torch.randint(-256, 256, (32, 8)) / 2  # ties
    x[:8, 0] = torch.tensor([torch.nan, 3e9, -3e9, 0.5, 1.5, -2.5, 2147483520.0, -torch.inf])
    y = run(kernels, "round", x.view(torch.int32))
    assert y[:8, 0].tolist() == [0, 2**31 - 1, -(2**31), 0, 2, -2, 2147483520, -(2**31)]
    assert torch.equal(y[8:, ::2], x[8:, ::2].round().int())
    assert torch.equal(y[:, 1::2].to(torch.int8), x[:, 1::2].round().to(torch.int8))


def test_functions_of_floats(kernels):
    x = torch.rand(32, 16) * 10
    y = run(kernels, "functions", x.view(torch.int32)).view(torch.float32)
    torch.testing.assert_close(y[:, 0], x[:, 0].exp(), rtol=1e-6, atol=0)
    assert torch.equal(y[:, 1], x[:, 1].double().sqrt().float())


def test_atomic_sums_of_all_blocks(kernels):
    y = torch.zeros(32, 16)
    kernels.run("add_global", random_words(), y, grid=(7, 1, 1))
    assert y[0, 0] == 7 * sum(LANES) and not y.flatten()[1:].any()


def test_places_of_threads_and_blocks(kernels):
    y = torch.zeros(2, 3, 32, dtype=torch.int32)
    kernels.run("places", random_words(), y, grid=(3, 2, 1))
    for by, bx, lane in itertools.product(range(2), range(3), LANES):
        assert y[by, bx, lane] == lane + 100 * bx + 1000 * by + 20000
