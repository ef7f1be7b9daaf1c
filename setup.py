"""Builds the one extension, `ftrt._C`, with ninja; the rest of the package is in pyproject.toml.

`FTRT_BUILD` (environment) says what to do about it:
    unset   build it if this machine can; otherwise install without it, and say why (ftrt then runs
            reference ops);
    `1`     build it, and fail if that fails;
    `0`     leave it out.
`CXX` names the compiler.

CUDA kernels are compiled where they run, so a wheel has their sources, from csrc/cuda, and nothing
of CUDA is needed to build it. `FTRT_BUILD_BUNDLE` names a bundle that `ftrt kernels build` has
written, a folder or a file, for the wheel to have it too, packed as one.
"""

import importlib.util
import itertools
import lzma
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# Stable ABI of torch 2.11: the oldest torch the binary runs with, whichever newer one it is
# compiled against.
TORCH_TARGET_VERSION = "0x020b000000000000"

# -ffp-contract: multiply and add in one instruction where the target has one; the default depends
# on -std.
# -fno-tree-pre: GCC's partial redundancy elimination stores every sum of a register tile to memory
# in every step of its loop, which halves the speed.
# -Wno-psabi: vectors wider than the target's registers stay inside inlined functions, so their ABI
# does not matter.
FLAGS = [
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-tree-pre",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
]


class CannotBuildError(Exception):
    """Why the extension cannot be built here."""


@dataclass(frozen=True)
class Unit:
    """One translation unit: `flags` are its own, `includes` beside csrc/include."""

    source: Path
    flags: tuple[str, ...] = ()
    includes: tuple[Path, ...] = field(default=())


@dataclass(frozen=True)
class IsaLevel:
    """An instruction set with kernels of its own; `macro` tells the dispatcher that they are
    there."""

    name: str
    macro: str
    flags: tuple[str, ...]
    assembly: str = ""  # an instruction the assembler must know


AVX2 = ("-mavx2", "-mfma")
# -Wno-maybe-uninitialized: GCC finds its own intrinsics guilty (bug 105593).
AVX512 = (
    *AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512vl"),
    *("-mprefer-vector-width=512", "-Wno-maybe-uninitialized"),
)
VNNI = (*AVX512, "-mavx512vnni")
BF16 = (*VNNI, "-mavx512bf16")
AMX = (*BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16")

X86_LEVELS = (
    IsaLevel("avx2", "FTRT_BUILD_AVX2", AVX2),
    IsaLevel("avx512", "FTRT_BUILD_AVX512", AVX512),
    IsaLevel("avx512_vnni", "FTRT_BUILD_AVX512_VNNI", VNNI),
    IsaLevel("avx512_bf16", "FTRT_BUILD_AVX512_BF16", BF16),
    IsaLevel("amx", "FTRT_BUILD_AMX", AMX, "tilerelease"),
)


def target_levels() -> tuple[IsaLevel, ...]:
    """The levels beside `portable` that mean something for the machine compiled for."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    return X86_LEVELS if is_x86 else ()


def isa_levels(compiler: str) -> tuple[IsaLevel, ...]:
    """The target's levels up to the first one that `compiler` is too old for."""
    return tuple(itertools.takewhile(lambda level: can_compile(compiler, level), target_levels()))


def can_compile(compiler: str, level: IsaLevel) -> bool:
    """Whether `compiler` knows the flags of `level`, and its assembler the instruction."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(f'int main() {{ __asm__ volatile("{level.assembly}"); }}\n')
        command = [*compiler.split(), *level.flags, "-c", str(source), "-o", f"{folder}/probe.o"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def find_compiler() -> str:
    """The C++ compiler, GCC or Clang; the kernels use their vector extensions."""
    for name in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]:
        path = shutil.which(name.split()[0])
        if path is None:
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if version.returncode == 0 and re.search(
            "gcc|g\\+\\+|clang|free software", version.stdout, re.I
        ):
            return name
    raise CannotBuildError(
        "a C++ compiler (g++ 10 or clang++ 12, or newer) must be on PATH or named by CXX; found"
        f" none that runs (CXX={os.environ.get('CXX')!r}). Debian, Ubuntu: apt install g++"
    )


def torch_facts() -> tuple[str, list[Path], Path]:
    """Version, include folders and library folder of the installed torch."""
    if importlib.util.find_spec("torch") is None:
        raise CannotBuildError(
            "torch must be importable while building, for its headers; an isolated build has none."
            " Install torch >= 2.11 first, then: pip install --no-build-isolation ."
        )
    import torch
    from torch.utils.cpp_extension import include_paths

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        raise CannotBuildError(f"torch must be 2.11 or newer; got {torch.__version__}")
    return (
        torch.__version__,
        [Path(p) for p in include_paths()],
        Path(torch.__file__).parent / "lib",
    )


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        path = shutil.which("ninja")
        if path is None:
            raise CannotBuildError("ninja must be installed: pip install ninja") from None
        return path
    return str(Path(ninja.BIN_DIR) / "ninja")


def units(
    levels: tuple[IsaLevel, ...], torch_version: str, torch_includes: list[Path]
) -> list[Unit]:
    """Every source of csrc with what it is compiled with. Only bindings/ sees torch's and Python's
    headers."""
    try:
        import pybind11
    except ImportError:
        raise CannotBuildError("pybind11 must be installed: pip install pybind11") from None
    macros = tuple(f"-D{level.macro}" for level in levels)
    own_flags = {f"_{level.name}": level.flags for level in levels}
    every_level = {f"_{level.name}" for level in X86_LEVELS}
    found = []
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        suffix = next((s for s in every_level if source.stem.endswith(s)), None)
        if suffix is None or suffix in own_flags:
            found.append(Unit(source, (*macros, *own_flags.get(suffix or "", ()))))
    found += [Unit(source) for source in sorted((CSRC / "runtime").glob("*.cpp"))]
    flags = (
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        f'-DFTRT_BUILD_TORCH="{torch_version}"',
    )
    includes = (
        *torch_includes,
        Path(pybind11.get_include()),
        Path(sysconfig.get_paths()["include"]),
    )
    found += [Unit(source, flags, includes) for source in sorted((CSRC / "bindings").glob("*.cpp"))]
    return found


def ninja_escape(text: str) -> str:
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def shell_quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''").replace("$", "$$") + "'"


def link_flags(torch_lib: Path) -> list[str]:
    """torch's own libraries are loaded before the extension is; -l only records which ones it
    needs."""
    if sys.platform == "darwin":
        return ["-bundle", "-undefined", "dynamic_lookup"]
    return ["-shared", "-s", f"-L{torch_lib}", "-ltorch_cpu", "-ldl"]


def write_ninja(build: Path, target: Path, compiler: str, levels: tuple[IsaLevel, ...]) -> None:
    """Write build.ninja that makes `target` from csrc."""
    version, torch_includes, torch_lib = torch_facts()
    lines = [
        "ninja_required_version = 1.8",
        f"cxx = {compiler}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        "rule link",
        "  command = $cxx $in $flags -o $out",
        "  description = link $out",
    ]
    objects = []
    for unit in units(levels, version, torch_includes):
        name = unit.source.relative_to(CSRC).with_suffix(".o")
        objects.append(str(name))
        folders = [f"-I{CSRC / 'include'}", *(f"-isystem{path}" for path in unit.includes)]
        flags = " ".join(shell_quote(flag) for flag in (*FLAGS, *folders, *unit.flags))
        lines += [f"build {name}: compile {ninja_escape(str(unit.source))}", f"  flags = {flags}"]
    linking = " ".join(shell_quote(flag) for flag in link_flags(torch_lib))
    lines += [
        f"build {ninja_escape(str(target))}: link {' '.join(objects)}",
        f"  flags = {linking}",
    ]
    build.mkdir(parents=True, exist_ok=True)
    (build / "build.ninja").write_text("\n".join(lines) + "\n")


class BuildExtension(build_ext):
    """Builds `ftrt._C`; without FTRT_BUILD=1 a machine that cannot is told why and does without."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            build = Path(self.build_temp).resolve() / "ftrt_C"
            compiler = find_compiler()
            levels = isa_levels(compiler)
            if left_out := [level.name for level in target_levels() if level not in levels]:
                self.warn(
                    f"ftrt._C is built without kernels for {', '.join(left_out)}: {compiler} does"
                    f" not compile for {left_out[0]}. A newer compiler does (g++ 11 or clang++ 12"
                    " for all)."
                )
            write_ninja(build, target, compiler, levels)
            target.parent.mkdir(parents=True, exist_ok=True)
            if subprocess.run([find_ninja(), "-C", str(build)], check=False).returncode != 0:
                raise CannotBuildError(
                    "the compiler failed; its messages are above (pip install -v shows them)"
                )
        except CannotBuildError as error:
            if os.environ.get("FTRT_BUILD") == "1":
                raise SystemExit(f"ftrt._C: {error}") from None
            ext.optional = True
            self.warn(
                f"ftrt._C is not built: {error}\n"
                "ftrt will run on its reference ops, which are slower. FTRT_BUILD=1 makes this an"
                " error."
            )


class BuildPackage(build_py):
    """Puts the CUDA kernels into the package, where an installed `ftrt.kernels` looks for them. An
    editable install reads csrc/cuda itself."""

    def run(self) -> None:
        super().run()
        bundle = os.environ.get("FTRT_BUILD_BUNDLE")
        if bundle and not Path(bundle).exists():
            raise SystemExit(f"FTRT_BUILD_BUNDLE: must be a folder or a file; got {bundle!r}")
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "ftrt" / "kernels"
        shutil.rmtree(package / "cuda", ignore_errors=True)  # by an earlier build
        (package / "cuda").mkdir(parents=True)
        for source in sorted((CSRC / "cuda").glob("*.cu*")):
            shutil.copyfile(source, package / "cuda" / source.name)
        (package / "bundle.xz").unlink(missing_ok=True)
        if bundle:
            files = sorted(Path(bundle).iterdir()) if Path(bundle).is_dir() else [Path(bundle)]
            entries = b"".join(file.read_bytes() for file in files)
            (package / "bundle.xz").write_bytes(lzma.compress(entries, preset=9))


def extensions() -> list[Extension]:
    wanted = os.environ.get("FTRT_BUILD", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"FTRT_BUILD: must be 0, 1 or unset; got {wanted!r}")
    return [] if wanted == "0" else [Extension("ftrt._C", sources=[])]


if __name__ == "__main__":  # tests/csrc imports the flags
    setup(
        ext_modules=extensions(), cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage}
    )
