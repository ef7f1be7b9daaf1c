"""What the compile gate does with one kernel: compile by an NVRTC wheel, disassemble, find faults.

Nothing here needs a GPU or ftrt's extension: NVRTC is called through ctypes, so that the wheels of
two CUDA majors are tried side by side. Cubins stay in build/compile_gate, by the hash of all that
they depend on; only what changed is compiled again.
"""

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ftrt.kernels.cubin import SHARED_LIMIT_BYTES, Resources, read_resources
from ftrt.kernels.cubins import COMPILE_OPTIONS

BUILD = Path(__file__).parents[3] / "build" / "compile_gate"
# of every architecture here; a thread gets them in units
REGISTERS_OF_A_BLOCK = 2**16
REGISTER_UNIT = 8
# what a thread's local memory is read and written with
SPILLS = ("LDL", "STL")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")
SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Compiled:
    """A cubin with what its assembler said."""

    cubin: bytes
    log: str


def wheel_files(pattern):
    """Files of the installed `nvidia-*` wheels, by a pattern below their common folder."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else ()
    return sorted(path for folder in folders for path in Path(folder).glob(pattern))


def nvrtc_libraries():
    """major version -> path of libnvrtc, of every NVRTC wheel that is installed."""
    found = wheel_files("*/lib/libnvrtc.so.*")
    return {int(path.name.rpartition(".")[2]): path for path in found}


def disassembler():
    """The path of nvdisasm: that of its wheel, or the one on PATH; None without either."""
    found = wheel_files("*/bin/nvdisasm")
    return str(found[-1]) if found else shutil.which("nvdisasm")


class Nvrtc:
    """One libnvrtc."""

    def __init__(self, path):
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, source, headers, options):
        """The cubin of a source, with the headers it may include, by name.

        Raises:
            AssertionError: the compiler's messages.
        """
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self._library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernel.cu", len(headers), texts, names
        )
        assert status == 0, f"nvrtcCreateProgram: {status}"
        try:
            status = self._library.nvrtcCompileProgram(program, len(options), words)
            log = self._output(program, "ProgramLog").decode().rstrip("\0")
            assert status == 0, log
            return Compiled(self._output(program, "CUBIN"), log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def compile_kernel(self, kernel, arch):
        """As `compile`, of an `ftrt.kernels.Kernel`, with the options the runtime compiles with."""
        options = [f"-arch=sm_{arch}", *COMPILE_OPTIONS, *kernel.options, *VERBOSE]
        parts = (self.version, kernel.source_hash(), *options)
        kept = BUILD / hashlib.sha256("\0".join(parts).encode()).hexdigest()
        if not kept.is_dir():
            made = self.compile(kernel.source.read_text(), kernel.headers(), options)
            _keep(kept, made)
        return Compiled((kept / "cubin").read_bytes(), (kept / "log").read_text())

    def _output(self, program, what):
        size = ctypes.c_size_t()
        assert getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        buffer = ctypes.create_string_buffer(size.value)
        assert getattr(self._library, f"nvrtcGet{what}")(program, buffer) == 0
        return buffer.raw


VERBOSE = ("--ptxas-options=-v",)


def _keep(folder, made):
    """Put the files into a folder that other processes see whole or not at all."""
    BUILD.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=BUILD))
    (work / "cubin").write_bytes(made.cubin)
    (work / "log").write_text(made.log)
    try:
        os.rename(work, folder)
    except OSError:
        # another process was first
        shutil.rmtree(work)


def opcodes(cubin, tool, folder):
    """How often each opcode, without its suffixes, stands in a cubin."""
    file = Path(folder, "kernel.cubin")
    file.write_bytes(cubin)
    command = [tool, "--print-code", "--no-dataflow", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Counter(INSTRUCTION.findall(done.stdout))


def resource_faults(compiled, name, arch, *, threads, dynamic_bytes):
    """What a compiled kernel must not take: local memory, or more than a block may have."""
    found = read_resources(compiled.cubin, name)
    faults = []
    if found.local_bytes:
        faults.append(f"{found.local_bytes} bytes of local memory a thread")
    for stores, loads in SPILLED.findall(compiled.log):
        if int(stores) or int(loads):
            faults.append(f"spills: {stores} bytes stored, {loads} loaded")
    if -(-found.registers // REGISTER_UNIT) * REGISTER_UNIT * threads > REGISTERS_OF_A_BLOCK:
        faults.append(f"{found.registers} registers for each of {threads} threads")
    shared, limit = found.shared_bytes + dynamic_bytes, SHARED_LIMIT_BYTES[arch]
    if shared > limit:
        faults.append(f"{shared} bytes of shared memory; sm_{arch} has {limit}")
    return faults


def opcode_faults(counts, wanted):
    """Wanted opcodes that are not there, and accesses to local memory."""
    missing = [f"no {opcode}" for opcode in wanted if not counts[opcode]]
    return missing + [f"{counts[opcode]} {opcode}" for opcode in SPILLS if counts[opcode]]


def said_resources(log):
    """What the assembler's own words say, to compare `read_resources` with."""
    registers = re.search(r"Used (\d+) registers", log)
    frame = re.search(r"(\d+) bytes stack frame", log)
    shared = re.search(r"(\d+) bytes smem", log)
    return Resources(
        registers=int(registers[1]),
        shared_bytes=int(shared[1]) if shared else 0,
        local_bytes=int(frame[1]),
    )
