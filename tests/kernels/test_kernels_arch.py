"""Which architecture a kernel is compiled for, by the device."""

from pathlib import Path

import pytest

from ftrt.errors import UnsupportedError
from ftrt.kernels.cubins import choose_arch
from ftrt.kernels.kernel import ARCHES, Kernel
from ftrt.kernels.signature import Signature


def kernel(*arches):
    return Kernel("k", Path("k.cu"), Signature("p"), 32, arches=arches)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "80"),
        ((8, 6), "86"),
        ((8, 7), "86"),
        ((8, 9), "89"),
        ((9, 0), "90a"),
        ((10, 0), "100"),
        ((10, 3), "100"),
        ((12, 0), "120"),
        ((12, 1), "120"),
    ],
)
def test_a_device_runs_its_own_or_an_older_minor_version(capability, arch):
    assert choose_arch(kernel(*ARCHES), capability) == arch


def test_an_architecture_with_a_letter_runs_nowhere_else():
    with pytest.raises(UnsupportedError, match=r"^k: the GPU must run one of sm_80, sm_100a; got"):
        choose_arch(kernel("80", "100a"), (10, 3))


def test_another_major_version_is_another_machine():
    with pytest.raises(UnsupportedError) as caught:
        choose_arch(kernel("80", "120"), (9, 0))
    assert str(caught.value) == (
        "k: the GPU must run one of sm_80, sm_120; got compute capability 9.0. FTRT_CUDA=reference"
        " in the environment computes with torch's own ops instead"
    )
