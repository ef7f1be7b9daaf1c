"""The emulation reports what a kernel does wrong, and is silent about the same done right.

Each fault is a few lines of a kernel, and stands beside a version without it. Shared memory has
1024 bytes, a block 64 threads; x has 64 floats, y the first 128 of a storage of 192.
"""

import re

import pytest
import torch
from emulated import EmulationError
from tiny_kernels import TinyKernels

SEEDS = range(5)
PLACE = r"tiny\.cu:\d+"

PRELUDE = """
#define STORE(k, value) ptx::store_shared_f32(base + 4 * (k), value)
#define LOAD(k) ptx::load_shared_f32(base + 4 * (k))
#define COPY() ptx::copy_async_16(base + 16 * i, x + 4 * (i % 16), 16)
"""

# name -> faulty, what is reported, correct
SHARED = {
    "two threads write": (
        "if (i == 3 || i == 40) STORE(0, 1.0f);",
        rf"race in shared memory at byte 0: thread (3|40) in store_shared_f32 at {PLACE}, and"
        rf" thread (3|40) wrote it in store_shared_f32 at {PLACE}, with no barrier between",
        "if (i == 3) STORE(0, 1.0f); ptx::barrier(); if (i == 40) STORE(0, 2.0f);",
    ),
    "two threads write halves of one word and its whole": (
        "if (i == 3) ptx::store_shared_16(base + 2, 1); if (i == 4) STORE(0, 1.0f);",
        "race in shared memory at byte 2: ",
        "if (i == 3) ptx::store_shared_16(base + 2, 1);if (i == 4) ptx::store_shared_16(base, 1);",
    ),
    "a read is not behind another thread's write": (
        "STORE(i, 0.0f); ptx::barrier(); STORE(i, 1.0f); y[i] = LOAD(63 - i);",
        "race in shared memory .* (wrote|read) it in (load|store)_shared_f32",
        "STORE(i, 0.0f); ptx::barrier(); STORE(i, 1.0f); ptx::barrier(); y[i] = LOAD(63 - i);",
    ),
    "a write is not behind another thread's read": (
        "STORE(i, 0.0f); ptx::barrier(); y[i] = LOAD(63 - i); STORE(i, 1.0f);",
        "race in shared memory .* (wrote|read) it in (load|store)_shared_f32",
        "STORE(i, 0.0f); ptx::barrier(); y[i] = LOAD(63 - i); ptx::barrier(); STORE(i, 1.0f);",
    ),
    "one of many readers writes": (
        "if (i == 0) STORE(0, 1.0f); ptx::barrier(); y[i] = LOAD(0);"
        "ptx::exchange(0.0f, 1); if (i == 5) STORE(0, 2.0f);",
        r"race in shared memory at byte 0: thread 5 in store_shared_f32 .* thread (\d+) read it"
        rf"|race in shared memory at byte 0: thread \d+ in load_shared_f32 at {PLACE}, and thread"
        " 5 wrote it",
        "if (i == 0) STORE(0, 1.0f); ptx::barrier(); y[i] = LOAD(0);"
        "ptx::barrier(); if (i == 5) STORE(0, 2.0f);",
    ),
    "a shuffle orders nothing": (
        "STORE(i, 1.0f); ptx::exchange(0.0f, 1); y[i] = LOAD(i ^ 1);",
        r"race in shared memory .* wrote it in store_shared_f32",
        "STORE(i, 1.0f); ptx::warp_barrier(); y[i] = LOAD(i ^ 1);",
    ),
    "ldmatrix orders nothing": (
        "ptx::store_shared_128(base + 16 * i, {i, i, i, i});"
        "y[i] = ptx::load_matrices(base + 16 * i).x;",
        r"race in shared memory .* in load_matrices .* wrote it in store_shared_128",
        "ptx::store_shared_128(base + 16 * i, {i, i, i, i}); ptx::warp_barrier();"
        "y[i] = ptx::load_matrices(base + 16 * i).x;",
    ),
    "what ldmatrix reads for other lanes is overwritten": (
        "ptx::store_shared_128(base + 16 * i, {i, i, i, i}); ptx::warp_barrier();"
        "y[i] = ptx::load_matrices_transposed(base + 16 * i).x; STORE(4 * i, 1.0f);",
        r"race in shared memory .* read it in load_matrices_transposed",
        "ptx::store_shared_128(base + 16 * i, {i, i, i, i}); ptx::warp_barrier();"
        "y[i] = ptx::load_matrices_transposed(base + 16 * i).x;"
        "ptx::warp_barrier(); STORE(4 * i, 1.0f);",
    ),
    "a warp's barrier orders no other warp": (
        "STORE(i, 0.0f); ptx::barrier(); STORE(i, 1.0f); ptx::warp_barrier(); y[i] = LOAD(63 - i);",
        r"race in shared memory",
        "STORE(i, 0.0f); ptx::barrier(); STORE(i, 1.0f); ptx::warp_barrier(); y[i] = LOAD(i ^ 31);",
    ),
    "nobody wrote": (
        "if (i < 32) STORE(i, 1.0f); ptx::barrier(); y[i] = LOAD(i);",
        rf"byte (1[2-9]\d|2[0-5]\d) of shared memory was never written: thread \d+ in"
        rf" load_shared_f32 at {PLACE}",
        "STORE(i, 1.0f); ptx::barrier(); y[i] = LOAD(i);",
    ),
    "another block wrote": (
        "if (ptx::block_index_x() % 2 == 0) STORE(i, 1.0f); ptx::barrier();"
        "if (ptx::block_index_x() < 2) y[64 * ptx::block_index_x() + i] = LOAD(i);",
        r"block \(1, 0, 0\), thread \d+: byte \d+ of shared memory was never written",
        "STORE(i, 1.0f); ptx::barrier();"
        "if (ptx::block_index_x() < 2) y[64 * ptx::block_index_x() + i] = LOAD(i);",
    ),
    "beyond the end": (
        "STORE(193 + i, 1.0f);",
        rf"thread 63: store_shared_f32 at {PLACE} touches bytes 1024 to 1027 of shared memory, the"
        " block has 1024",
        "STORE(192 + i, 1.0f);",
    ),
    "before the begin": (
        "STORE(static_cast<int>(i) - 1, 1.0f);",
        "thread 0: store_shared_f32 .* touches bytes -4 to -1 of shared memory",
        "STORE(i, 1.0f);",
    ),
    "not aligned": (
        "ptx::store_shared_64(base + 8 * i + 4, {i, i});",
        rf"store_shared_64 at {PLACE} at byte \d+ of shared memory: not aligned to 8",
        "ptx::store_shared_64(base + 8 * i, {i, i});",
    ),
    "a row of ldmatrix is not aligned": (
        "ptx::store_shared_128(base + 16 * i, {i, i, i, i}); ptx::barrier();"
        "y[i] = ptx::load_matrices(base + 16 * i - 8 * (i == 9)).x;",
        "load_matrices .* at byte 136 of shared memory: not aligned to 16",
        "ptx::store_shared_128(base + 16 * i, {i, i, i, i}); ptx::barrier();"
        "y[i] = ptx::load_matrices(base + 16 * i).x;",
    ),
}

COPIES = {
    "read before it is waited for": (
        "COPY(); ptx::commit_copies(); y[i] = LOAD(4 * i); ptx::wait_copies<0>();",
        rf"byte \d+ of shared memory is on its way: thread (\d+) in load_shared_f32 at {PLACE}, and"
        rf" thread \1 has not waited for its copy_async_16 at {PLACE}",
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>(); y[i] = LOAD(4 * i);",
    ),
    "read by others behind a barrier without a wait": (
        "COPY(); ptx::commit_copies(); ptx::barrier(); y[i] = LOAD(4 * (i ^ 63));"
        "ptx::wait_copies<0>();",
        "is on its way|race",
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>(); ptx::barrier();"
        "y[i] = LOAD(4 * (i ^ 63));",
    ),
    "read by others without a barrier behind the wait": (
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>(); ptx::exchange(0.0f, 1);"
        "y[i] = LOAD(4 * (i ^ 1));",
        "race in shared memory .* in load_shared_f32 .* wrote it in copy_async_16",
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>(); ptx::warp_barrier();"
        "y[i] = LOAD(4 * (i ^ 1));",
    ),
    "the barrier stands before the wait": (
        "COPY(); ptx::commit_copies(); ptx::barrier(); ptx::wait_copies<0>();"
        "ptx::exchange(0.0f, 1); y[i] = LOAD(4 * (i ^ 1));",
        "race in shared memory .* wrote it in copy_async_16",
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>(); ptx::barrier();"
        "y[i] = LOAD(4 * (i ^ 1));",
    ),
    "read of the newest group, which may be pending": (
        "if (i >= 32) return; COPY(); ptx::commit_copies();"
        "ptx::copy_async_16(base + 512 + 16 * i, x, 16); ptx::commit_copies();"
        "ptx::wait_copies<1>(); y[i] = LOAD(128 + 4 * i); ptx::wait_copies<0>();",
        "is on its way",
        "if (i >= 32) return; COPY(); ptx::commit_copies();"
        "ptx::copy_async_16(base + 512 + 16 * i, x, 16); ptx::commit_copies();"
        "ptx::wait_copies<1>(); y[i] = LOAD(4 * i); ptx::wait_copies<0>();",
    ),
    "not in a group when it is waited for": (
        "COPY(); ptx::wait_copies<0>(); y[i] = LOAD(4 * i);",
        "is on its way",
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>(); y[i] = LOAD(4 * i);",
    ),
    "never waited for": (
        "COPY(); ptx::commit_copies();",
        rf"the kernel ends with 1 copies that this thread has not waited for; the first is"
        rf" copy_async_16 at {PLACE}",
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>();",
    ),
    "over bytes that others still read": (
        "STORE(4 * i, 1.0f); ptx::barrier(); y[i] = LOAD(4 * (63 - i)); COPY();"
        "ptx::commit_copies(); ptx::wait_copies<0>();",
        "race in shared memory|is on its way",
        "STORE(4 * i, 1.0f); ptx::barrier(); y[i] = LOAD(4 * (63 - i)); ptx::barrier(); COPY();"
        "ptx::commit_copies(); ptx::wait_copies<0>();",
    ),
    "a store into bytes on their way": (
        "COPY(); ptx::commit_copies(); STORE(4 * i + 3, 0.0f); ptx::wait_copies<0>();",
        "is on its way: .* in store_shared_f32",
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>(); STORE(4 * i + 3, 0.0f);",
    ),
    "two copies to one place": (
        "COPY(); COPY(); ptx::commit_copies(); ptx::wait_copies<0>();",
        "is on its way: .* in copy_async_16",
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>();"
        "COPY(); ptx::commit_copies(); ptx::wait_copies<0>();",
    ),
    "to an address that is not aligned": (
        "if (i == 0) ptx::copy_async_16(base + 8, x, 16);"
        "ptx::commit_copies(); ptx::wait_copies<0>();",
        "copy_async_16 .* at byte 8 of shared memory: not aligned to 16",
        "if (i == 0) ptx::copy_async_16(base + 16, x, 16);"
        "ptx::commit_copies(); ptx::wait_copies<0>();",
    ),
    "from an address that is not aligned": (
        "if (i == 0) ptx::copy_async_16(base, x + 1, 4);"
        "ptx::commit_copies(); ptx::wait_copies<0>();",
        "copy_async_16 .*: the source must be aligned to 16",
        "if (i == 0) ptx::copy_async_16(base, x, 4); ptx::commit_copies(); ptx::wait_copies<0>();",
    ),
    "of more than 16 bytes": (
        "if (i == 0) ptx::copy_async_16(base, x, 17); ptx::commit_copies(); ptx::wait_copies<0>();",
        "0 to 16 bytes can be copied; got 17",
        "if (i == 0) ptx::copy_async_16(base, x, 16); ptx::commit_copies(); ptx::wait_copies<0>();",
    ),
    "from behind the tensor": (
        "if (i == 0) ptx::copy_async_16(base, x + 64, 4);"
        "ptx::commit_copies(); ptx::wait_copies<0>();",
        rf"copy_async_16 at {PLACE}: bytes 256 to 259 of argument 1, which has 256",
        "if (i == 0) ptx::copy_async_16(base, x + 64, 0);"
        "ptx::commit_copies(); ptx::wait_copies<0>();",
    ),
}

TOGETHER = {
    "a barrier that half of the threads miss": (
        "if (i < 32) ptx::barrier();",
        rf"deadlock: threads 0 to 31: barrier at {PLACE}; threads 32 to 63: ended",
        "if (i < 32) STORE(i, 1.0f); ptx::barrier();",
    ),
    "a barrier in each branch": (
        "if (i < 32) ptx::barrier();\nelse ptx::barrier();",
        rf"all threads must wait in the same barrier; this one comes to barrier at {PLACE}, others"
        rf" wait in barrier at {PLACE}",
        "if (i < 32) STORE(i, 1.0f); else STORE(i, 2.0f); ptx::barrier();",
    ),
    "a barrier and a shuffle in halves of a warp": (
        "if (i == 5) ptx::barrier(); else ptx::exchange(0.0f, 1);",
        rf"deadlock: threads 0 to 4: exchange at {PLACE}; thread 5: barrier at {PLACE}; threads 6"
        rf" to 31: exchange at {PLACE}; threads 32 to 63: ended",
        "ptx::barrier(); ptx::exchange(0.0f, 1);",
    ),
    "a shuffle and a warp's barrier": (
        "if (lane < 16) ptx::exchange(0.0f, 1); else ptx::warp_barrier();",
        rf"the lanes of a warp must do (exchange|warp_barrier) at {PLACE} together; thread \d+"
        rf" waits in (exchange|warp_barrier) at {PLACE}",
        "ptx::exchange(0.0f, 1); ptx::warp_barrier();",
    ),
    "a product in each branch": (
        "int c[4] = {};\nif (lane < 16) ptx::multiply_int8(c, {}, 0, 0);\n"
        "else ptx::multiply_int8(c, {}, 0, 0);\ny[i] = c[0];",
        "the lanes of a warp must do multiply_int8 .* together",
        "int c[4] = {}; ptx::multiply_int8(c, {}, 0, 0); y[i] = c[0];",
    ),
    "a shuffle after a lane has ended": (
        "if (i == 7) return; y[i] = ptx::exchange(1.0f, 1);",
        rf"exchange at {PLACE} needs all lanes of the warp; the kernel has ended for thread 7"
        rf"|thread 7: the kernel ends for this thread, and thread \d+ of the same warp waits for it"
        rf" in exchange at {PLACE}",
        "const float v = ptx::exchange(1.0f, 1); if (i == 7) return; y[i] = v;",
    ),
    "a shuffle over more than a warp": (
        "y[i] = ptx::exchange(1.0f, 32);",
        "the mask must be 0 to 31; got 32",
        "y[i] = ptx::exchange(1.0f, 31);",
    ),
}

GLOBAL = {
    "a read behind the storage": (
        "y[i] = x[i + 1];",
        rf"thread 63: read at {PLACE}: bytes 256 to 259 of argument 1, which has 256",
        "if (ptx::block_index_x() == 0) y[i] = x[i];",
    ),
    "a write into the storage behind the tensor": (
        "if (ptx::block_index_x() == 0) y[i + 65] = 1.0f;",
        rf"thread 63: write at {PLACE}: bytes 512 to 515 of argument 2, which has 512",
        "if (ptx::block_index_x() == 0) y[i + 64] = 1.0f;",
    ),
    "a write to what is const": (
        "const_cast<float*>(x)[i] += 1.0f;",
        rf"write at {PLACE}: byte \d+ of argument 1, which is a pointer to const",
        "if (ptx::block_index_x() == 0) y[i] = 1.0f;",
    ),
    "two threads write": (
        "if (ptx::block_index_x() == 0) y[i / 2] = 1.0f;",
        rf"race in the storage of argument 2 at byte \d+: thread \d+ in write at {PLACE}, and"
        rf" thread \d+ wrote it in write at {PLACE}, with no barrier between",
        "if (ptx::block_index_x() == 0) y[i] = 1.0f;",
    ),
    "a read is not behind another thread's write": (
        "if (ptx::block_index_x() == 0) { y[i] = 1.0f; y[i + 64] = y[63 - i]; }",
        "race in the storage of argument 2 ",
        "if (ptx::block_index_x() == 0) { y[i] = 1.0f; ptx::barrier(); y[i + 64] = y[63 - i]; }",
    ),
    "two blocks write": (
        "y[i] = 1.0f;",
        rf"race in the storage of argument 2 at byte \d+: thread \d+ in write at {PLACE}, and"
        rf" thread \d+ of another block wrote it",
        "if (ptx::block_index_x() < 2) y[64 * ptx::block_index_x() + i] = 1.0f;",
    ),
    "a block reads what another one writes": (
        "if (ptx::block_index_x() == 0) y[i] = 1.0f;"
        "else if (ptx::block_index_x() == 1) y[i + 64] = y[i];",
        r"race in the storage of argument 2 .* of another block (wrote|read) it",
        "if (ptx::block_index_x() < 2) { y[64 * ptx::block_index_x() + i] = 1.0f; ptx::barrier();"
        "x = y + 64 * ptx::block_index_x(); const float other = x[63 - i]; ptx::barrier();"
        "y[64 * ptx::block_index_x() + i] = other; }",
    ),
    "a sum that is not atomic": (
        "if (i % 2 == 0) y[0] += 1.0f; else ptx::add_global(y, 1.0f);",
        "race in the storage of argument 2 at byte",
        "ptx::add_global(y, 1.0f);",
    ),
    "a read of an atomic sum that other blocks add to": (
        "ptx::add_global(y, 1.0f); ptx::barrier();"
        "if (ptx::block_index_x() == 0 && i == 0) y[1] = y[0];",
        r"race in the storage of argument 2 .* of another block",
        "if (ptx::block_index_x() == 0) ptx::add_global(y, 1.0f); ptx::barrier();"
        "if (ptx::block_index_x() == 0 && i == 0) y[1] = y[0];",
    ),
}

UNDEFINED = {
    "a vector that is not aligned": (
        "y[i] = reinterpret_cast<const float4*>(x + 1)->x;",
        rf"a pointer is not aligned to its type at {PLACE}",
        "y[i] = reinterpret_cast<const float4*>(x + 4)->x;",
    ),
    "a null pointer": (
        "const float* none = x[0] == 0.0f ? nullptr : x; y[i] = *none;",
        rf"a null pointer is used at {PLACE}",
        "const float* none = x[0] != 0.0f ? nullptr : x; y[i] = *none;",
    ),
    "a pointer to nowhere": (
        "y[i] = x[int64{1} << 40];",
        rf"read at {PLACE}: address 0x\w+, far from all tensors",
        "y[i] = x[int64{1} << 4];",
    ),
    "an index outside of its array": (
        "float a[64]; for (uint32 k = 0; k < 64; ++k) a[k] = x[k]; y[i] = a[i + 1];",
        rf"thread 63: an index is outside of its array at {PLACE}",
        "float a[64]; for (uint32 k = 0; k < 64; ++k) a[k] = x[k]; y[i] = a[i];",
    ),
    "a shift by the width": (
        "y[i] = static_cast<float>(1u << i);",
        rf"a shift is negative or not less than the width at {PLACE}",
        "y[i] = static_cast<float>(1u << i % 32);",
    ),
    "a sum that overflows": (
        "y[i] = static_cast<float>(2147483640 + static_cast<int>(i));",
        rf"a signed sum overflows at {PLACE}",
        "y[i] = static_cast<float>(2147483640u + i);",
    ),
    "a float that no integer holds": (
        "y[i] = static_cast<float>(static_cast<int>(x[i] + 3e9f));",
        "a float does not fit the integer type it is cast to",
        "y[i] = static_cast<float>(ptx::round_to_int(x[i] + 3e9f));",
    ),
}

GROUPS = {
    "shared": SHARED,
    "copies": COPIES,
    "together": TOGETHER,
    "global": GLOBAL,
    "undefined": UNDEFINED,
}
CASES = {
    f"{group}: {name}": case for group, cases in GROUPS.items() for name, case in cases.items()
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    bodies = {}
    for name, (faulty, _, correct) in CASES.items():
        bodies |= {name: faulty, f"{name}, mended": correct}
    return TinyKernels(tmp_path_factory.mktemp("tiny"), bodies, prelude=PRELUDE)


def run(kernels, name, seed):
    blocks = 3 if name.startswith(("global", "shared: another block")) else 1
    y = torch.full((192,), torch.nan)
    kernels.run(name, torch.zeros(64), y[:128], seed=seed, grid=(blocks, 1, 1))


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_reported_in_every_order_of_threads(kernels, name):
    for seed in SEEDS:
        with pytest.raises(EmulationError, match=CASES[name][1]) as caught:
            run(kernels, name, seed)
        assert re.match(r"tiny: block \(\d, 0, 0\)[,:]", str(caught.value))


@pytest.mark.parametrize("name", CASES)
def test_without_the_fault_nothing_is_reported(kernels, name):
    for seed in SEEDS:
        run(kernels, f"{name}, mended", seed)
