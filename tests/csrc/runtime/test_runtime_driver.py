"""Loading and launching, on a made-up driver that remembers what it was asked."""

import pytest

# `launched()` is what the driver remembers; `load()` a function whose parameters are 8 and 4 bytes.
USE = """
import ctypes, os, struct
driver = ctypes.CDLL(os.environ["DRIVER"])  # the runtime finds it by its name from here on
class Launch(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("function", "context", "stream")]
    _fields_ += [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3)]
    _fields_ += [("shared_bytes", ctypes.c_uint), ("bytes", ctypes.c_uint)]
    _fields_ += [("parameters", ctypes.c_ubyte * 4096)]
    _fields_ += [(n, ctypes.c_int) for n in ("count", "pushes", "pops")]
    _fields_ += [(n, ctypes.c_int) for n in ("loads", "relaxed_loads", "unloads")]
def launched():
    return Launch.in_dll(driver, "fake_launch")
def load(device=0, threads=128, size=12, image=b"twice", name="twice"):
    return native.Function(image, name, "twice[X=1]", device, threads, size)
def error_of(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        return [type(error).__name__, str(error)]
PARAMETERS = struct.pack("<Qi", 0x123456789abc, -5)
"""


@pytest.fixture
def use(run, fakes):
    def use_in_a_process(code, **environment):
        environment = {"FAKE_DEVICES": "90,86", "FAKE_PARAMETERS": "8,4", **environment}
        return run(USE + code, DRIVER=fakes.driver, **environment)

    return use_in_a_process


def test_devices_are_described(use, fakes):
    code = "result = [native.driver_facts(), [native.device_facts(i) for i in range(2)]]"
    driver, devices = use(code)
    assert driver == {"path": fakes.driver, "version": 12080}
    assert devices == [
        {"name": f"Fake {i}", "arch": arch, "multiprocessors": 7, "shared_limit": 101376}
        for i, arch in enumerate([[9, 0], [8, 6]])
    ]


def test_a_launch_passes_everything_on(use):
    code = """
load().launch((5, 6, 7), 4096, 0xfeed, PARAMETERS)
l = launched()
result = [list(l.grid), list(l.block), l.shared_bytes, l.stream, l.context, l.count,
          bytes(l.parameters[:l.bytes]) == PARAMETERS]
"""
    assert use(code) == [[5, 6, 7], [128, 1, 1], 4096, 0xFEED, 0x1000, 1, True]


def test_the_context_of_the_device_is_current_during_the_launch_only(use):
    code = """
function = load(device=1)
driver.cuCtxPushCurrent_v2(ctypes.c_void_p(0x1000))
before = launched().pushes
function.launch((1, 1, 1), 0, 0, PARAMETERS)
current = ctypes.c_void_p()
driver.cuCtxGetCurrent(ctypes.byref(current))
l = launched()
result = [l.context, current.value, l.pushes - before]
"""
    assert use(code) == [0x1001, 0x1000, 1]


def test_a_context_that_is_current_is_left_alone(use):
    code = """
function = load()
driver.cuCtxPushCurrent_v2(ctypes.c_void_p(0x1000))
before = launched().pushes, launched().pops
function.launch((1, 1, 1), 0, 0, PARAMETERS)
result = [launched().context, before == (launched().pushes, launched().pops)]
"""
    assert use(code) == [0x1000, True]


def test_code_is_loaded_as_a_capture_allows_and_shared_memory_is_opted_into(use):
    code = """
function = load()
l = launched()
limit = ctypes.c_int.in_dll(driver, "fake_dynamic_limit").value
mode = ctypes.c_int(1)
driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
result = [l.loads, l.relaxed_loads, l.pushes == l.pops, limit, mode.value,
          function.registers, function.static_shared_bytes, function.dynamic_shared_limit]
"""
    assert use(code, FAKE_STATIC="1376") == [1, 1, True, 100000, 0, 99, 1376, 100000]


@pytest.mark.parametrize(
    ("call", "environment", "kind", "text"),
    [
        (
            "error_of(native.driver_facts)",
            {"FAKE_FAIL": "cuInit=100"},
            "UnsupportedError",
            "CUDA driver: cuInit must succeed; got CUDA_ERROR_NO_DEVICE. nvidia-smi shows whether"
            " the driver sees a GPU; CUDA_VISIBLE_DEVICES may hide it",
        ),
        (
            "error_of(native.device_facts, 2)",
            {},
            "UsageError",
            "cuda:2: must be one of the 2 devices; got 2",
        ),
        (
            "error_of(load)",
            {"FAKE_FAIL": "cuDevicePrimaryCtxRetain=999"},
            "FtrtError",
            "cuda:0: cuDevicePrimaryCtxRetain must succeed; got CUDA error 999",
        ),
        (
            "error_of(load)",
            {"FAKE_FAIL": "cuModuleLoadData=700"},
            "FtrtError",
            "twice[X=1] on cuda:0: cuModuleLoadData must succeed; got CUDA_ERROR_ILLEGAL_ADDRESS"
            " (an illegal memory access was encountered)",
        ),
        (
            "error_of(load, 0, 128, 12, b'twice', 'thrice')",
            {},
            "FtrtError",
            "twice[X=1] on cuda:0: cuModuleGetFunction must succeed; got CUDA_ERROR_NOT_FOUND",
        ),
        (
            "error_of(load, 0, 513)",
            {},
            "UsageError",
            "twice[X=1] on cuda:0: threads must be 1 to 512, what its __launch_bounds__ and"
            " registers allow; got 513",
        ),
        (
            "error_of(load, 0, 128, 16)",
            {},
            "UsageError",
            "twice[X=1] on cuda:0: the signature must describe the parameters of the kernel, 12"
            " bytes; got 16 bytes",
        ),
        (
            "error_of(load().launch, (1, 1, 1), 0, 0, b'1234')",
            {},
            "UsageError",
            "twice[X=1] on cuda:0: parameters must be 12 bytes; got 4",
        ),
        (
            "error_of(load().launch, (1, 2, 3), 101377, 0, PARAMETERS)",
            {},
            "UsageError",
            "twice[X=1] on cuda:0: a block must fit the device's shared memory; got grid (1, 2, 3)"
            " of 128 threads with 101377 of at most 101376 bytes of dynamic shared memory",
        ),
        (
            "error_of(load().launch, (1, 70000, 1), 16, 0, PARAMETERS)",
            {"FAKE_FAIL": "cuLaunchKernel=1"},
            "UsageError",
            "twice[X=1] on cuda:0: the launch must succeed; got CUDA_ERROR_INVALID_VALUE for grid"
            " (1, 70000, 1) of 128 threads with 16 of at most 101376 bytes of dynamic shared"
            " memory",
        ),
        (
            "error_of(load(1).launch, (1, 1, 1), 0, 0, PARAMETERS)",
            {"FAKE_FAIL": "cuLaunchKernel=700"},
            "FtrtError",
            "twice[X=1] on cuda:1: the launch must succeed; got CUDA_ERROR_ILLEGAL_ADDRESS (an"
            " illegal memory access was encountered) for grid (1, 1, 1) of 128 threads with 0 of at"
            " most 101376 bytes of dynamic shared memory. An earlier kernel may be the cause;"
            " CUDA_LAUNCH_BLOCKING=1 in the environment shows which",
        ),
    ],
)
def test_failures_are_explained(use, call, environment, kind, text):
    balance = "\nresult.append(launched().pushes == launched().pops)"
    assert use(f"result = {call}{balance}", **environment) == [kind, text, True]


def test_what_cannot_be_used_is_unloaded(use):
    code = "error_of(load, 0, 128, 16)\nload()\nresult = [launched().loads, launched().unloads]"
    assert use(code) == [2, 1]
