"""Launches as they are recorded, repeated and copied."""

import pytest
import torch
from counting_backend import CountingBackend, kernel

from ftrt.kernels.backend import launch, use_backend
from ftrt.kernels.recording import recording


@pytest.fixture
def backend():
    backend = CountingBackend()
    with use_backend(backend):
        yield backend


def test_launches_are_recorded_and_run(backend, tmp_path):
    x = torch.zeros(4, 8)
    with recording() as recorder:
        launch(kernel("quantize_rows", "p i f", tmp_path), (2, 1, 1), 32, x, 4, 1.0)

    (recorded,) = recorder.launches
    assert backend.addresses == [(x.data_ptr(),)]
    assert (recorded.grid, recorded.shared_bytes, recorded.nbytes) == ((2, 1, 1), 32, 128)
    assert recorded.operations == 0
    assert recorder.arch(x.device) == (9, 0) and recorder.multiprocessors(x.device) == 132
    assert recorder.shared_limit(x.device) == 232448


def test_a_copied_launch_keeps_strides_and_shared_memory(backend, tmp_path):
    memory = torch.arange(24, dtype=torch.float32)
    left, right = memory[2:18].view(4, 4)[:, :3], memory[18:]
    with recording() as recorder:
        launch(kernel("k", "p p i p", tmp_path), (1, 1, 1), 0, left, right, 3, None)

    own_left, own_right, number, null = recorder.launches[0].copy().arguments

    assert (number, null) == (3, None)
    assert torch.equal(own_left, left) and torch.equal(own_right, right)
    assert own_left.stride() == left.stride()
    assert own_left.data_ptr() != left.data_ptr()
    # 16 floats lie between the two, in the copy as before
    assert own_right.data_ptr() - own_left.data_ptr() == right.data_ptr() - left.data_ptr()


def test_a_product_has_operations_and_a_chunk_of_unpack_its_own_bytes(backend, tmp_path):
    a, packed, out = (torch.zeros(32, dtype=torch.int8) for _ in range(3))
    with recording() as recorder:
        launch(kernel("w8a8_gemm", "pl pi iii", tmp_path), (1, 1, 1), 0, a, 8, packed, 2, 5, 6, 7)
        chunk = torch.zeros(3, 4, dtype=torch.bfloat16)
        launch(
            kernel("unpack", "pi pi i ii pl", tmp_path),
            (1, 1, 1),
            0,
            *(packed, 2, out, 1, 4, 0, 3, chunk, 4),
        )

    product, unpack = recorder.launches
    assert product.operations == 2 * 5 * 6 * 7
    assert (unpack.operations, unpack.nbytes) == (0, 12 * 3)
