"""Arguments become the bytes that C++ would lay out."""

import ctypes

import pytest
import torch

from ftrt.errors import UsageError
from ftrt.kernels.signature import Signature

TYPES = {
    "p": ctypes.c_uint64,
    "i": ctypes.c_int32,
    "u": ctypes.c_uint32,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
}
VALUES = {"p": 2**40 + 1, "i": -3, "u": 2**32 - 1, "l": -(2**40), "f": 1.5}


@pytest.mark.parametrize("letters", ["p", "ip", "pi", "ifuil", "pl p pf p pi ii pl p p", "fpfpflu"])
def test_the_layout_is_that_of_a_struct(letters):
    signature = Signature(letters)
    names = [f"p{i}" for i in range(len(signature))]

    class Layout(ctypes.Structure):
        _fields_ = [(n, TYPES[c]) for n, c in zip(names, signature.letters, strict=True)]

    values = [VALUES[letter] for letter in signature.letters]
    expected = bytes(Layout(*values))
    end = getattr(Layout, names[-1]).offset + getattr(Layout, names[-1]).size
    assert signature.pack(values) == expected[:end]
    assert signature.size_bytes == end


def test_pointers_are_tensors_addresses_or_null():
    x = torch.zeros(3)
    parameter = torch.nn.Parameter(x[1:])
    packed = Signature("pppp").pack((x, parameter, 7, None))
    assert [int.from_bytes(packed[i : i + 8], "little") for i in range(0, 32, 8)] == [
        *(x.data_ptr(), x.data_ptr() + 4, 7, 0)
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((1, 2), "got 2 of them: it has 3 parameters"),
        ((1, 2, 3, 4), "got 4 of them: it has 3 parameters"),
        ((1, None, 3), "i takes a number, not NoneType"),
        ((1, torch.tensor([1]), 3), "i takes a number, not Tensor"),
        ((1, 2, torch.tensor(1.0)), "f takes a number, not Tensor"),
        ((1, 2**31, 3), "requires -2147483648 <= number"),
        ((1, 1.5, 3), "not an integer"),
        (("x", 1, 3), "not an integer"),
        ((-1, 1, 3), "pif"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, reason):
    with pytest.raises(UsageError, match=r"^Signature: arguments must fit 'pif'; got ") as caught:
        Signature("p i f").pack(arguments)
    assert reason in str(caught.value)


def test_unknown_letters_are_refused():
    with pytest.raises(UsageError) as caught:
        Signature("p xd")
    assert str(caught.value) == (
        "Signature: each parameter must be one of p, i, u, l, f; got d, x in 'p xd'"
    )
