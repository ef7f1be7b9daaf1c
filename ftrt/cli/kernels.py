"""`ftrt kernels`: which CUDA kernels there are, compiled ahead, timed, and kept on this machine."""

__all__ = ["app"]

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ftrt.cli import show_help_without_command
from ftrt.cli.output import JsonFlag, console, emit, table
from ftrt.errors import UsageError, suggest

app = typer.Typer()
logger = logging.getLogger(__name__)

MIB = 2**20

ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="ARCH,...",
        help="Of 80, 86, 89, 90a, 100, 120; all without it.",
        show_default=False,
    ),
]
NameOption = Annotated[
    list[str] | None,
    typer.Option("--kernel", metavar="NAME", help="This kernel only. May be repeated."),
]


@app.callback(invoke_without_command=True)
def kernels(ctx: typer.Context) -> None:
    """List, build and time the CUDA kernels, and look after those that are compiled.

    A kernel is compiled when it is first launched, by NVRTC, which CUDA builds of torch bring
    along, and kept in the cache. Nothing but `bench` needs a GPU.
    """
    show_help_without_command(ctx)


@app.command("list")
def list_command(arch: ArchOption = None, as_json: JsonFlag = False) -> None:
    """Show ftrt's kernels and those of plugins, and where each would come from.

    bundle: was compiled ahead; cache: was compiled on this machine; compile: will be at its first
    launch; missing: there is neither a cubin nor a compiler.
    """
    from ftrt.cli.kernel_facts import collect_kernels, list_kernels

    arches = _arches(arch)
    collected, faults = collect_kernels()
    rows = list_kernels(collected, arches)
    answer = {"arches": list(arches), "kernels": rows, "faults": faults}
    emit(answer, as_json=as_json, render=_show_list)


@app.command()
def build(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="The bundle: a file if the name has a suffix, else a folder.",
            show_default=False,
        ),
    ],
    arch: ArchOption = None,
    kernel: NameOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compile kernels ahead, for machines without NVRTC and to save the first launch's time.

    Needs NVRTC and no GPU. FTRT_KERNEL_BUNDLE=BUNDLE in the environment makes ftrt look into it.
    Shows what each kernel takes: registers, shared memory at the largest problem, local memory.

      ftrt kernels build --arch 80,90a --out kernels.cubins
    """
    from ftrt.cli.kernel_facts import collect_kernels, require_writable, resource_rows
    from ftrt.kernels.bundle import build_bundle
    from ftrt.kernels.nvrtc import open_nvrtc

    arches = _arches(arch)
    collected, faults = collect_kernels()
    for fault in faults:
        logger.warning("left out: %s", fault)
    chosen = _chosen([one.kernel for one in collected], kernel)
    require_writable(out)
    compiler = open_nvrtc()
    total, done = sum(one in k.arches for k in chosen for one in arches), 0

    def report(label: str, size_bytes: int) -> None:
        nonlocal done
        done += 1
        logger.info("%d of %d: %s, %d bytes", done, total, label, size_bytes)

    build_bundle(chosen, arches, out, report)
    rows = resource_rows(chosen, arches, out)
    answer = {
        "bundle": str(out),
        "compiler": "{}.{}".format(*compiler.version),
        "size_bytes": sum(row["cubin_bytes"] for row in rows),
        "cubins": rows,
    }
    emit(answer, as_json=as_json, render=_show_build)


@app.command()
def bench(
    kernel: NameOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Tokens of a step.")] = 8192,
    features: Annotated[int, typer.Option(min=16, help="Width of the layer, in and out.")] = 4096,
    rank: Annotated[int, typer.Option(min=1, max=64, help="Of the adapter.")] = 16,
    as_json: JsonFlag = False,
) -> None:
    """Time each kernel that a square int8 layer with LoRA launches, on this machine's GPU.

    Shows the median time of a launch, in bfloat16, and what that is in bytes and operations a
    second, each tensor counted once.
    """
    from ftrt.cli.kernel_timing import time_kernels

    answer = time_kernels(rows=rows, features=features, rank=rank, names=kernel)
    emit(answer, as_json=as_json, render=_show_bench)


@app.command()
def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove the kernels, and nothing that is not ftrt's.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show where compiled kernels are kept, and which; or remove them.

    The folder is `kernels` in FTRT_CACHE_DIR, by default ~/.cache/ftrt. Kernels that are removed
    are compiled again when they are next launched.
    """
    from ftrt.cli.kernel_facts import cache_facts, clear_cache

    if clear:
        emit(clear_cache(), as_json=as_json, render=_show_cleared)
    else:
        emit(cache_facts(), as_json=as_json, render=_show_cache)


def _arches(text: str | None) -> tuple[str, ...]:
    from ftrt.kernels import ARCHES

    if text is None:
        return ARCHES
    wanted = tuple(part.strip().removeprefix("sm_") for part in text.split(","))
    for part in wanted:
        if part not in ARCHES:
            raise UsageError(
                f"--arch: must be of {', '.join(ARCHES)}; got {part!r}{suggest(part, ARCHES)}"
            )
    return tuple(dict.fromkeys(wanted))


def _chosen(kernels: list[Any], names: list[str] | None) -> list[Any]:
    known = {kernel.name for kernel in kernels}
    for name in names or ():
        if name not in known:
            raise UsageError(f"--kernel: must be one there is; got {name!r}{suggest(name, known)}")
    return [kernel for kernel in kernels if not names or kernel.name in names]


def _show_list(answer: Mapping[str, Any]) -> None:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in answer["kernels"]:
        groups.setdefault((row["name"], row["distribution"]), []).append(row)
    table(
        ("kernel", "distribution", "variants", "comes from", "source sha256"),
        [
            (name, distribution, len(rows), _origins(rows), rows[0]["source_sha256"][:12])
            for (name, distribution), rows in groups.items()
        ],
    )
    for fault in answer["faults"]:
        console().print(f"left out: {fault}")


def _origins(rows: list[Mapping[str, Any]]) -> str:
    """Where the variants come from, by architecture unless it is the same for all."""
    by_arch = {}
    for arch in rows[0]["origins"]:
        counts = Counter(row["origins"][arch] for row in rows if row["origins"][arch])
        parts = [f"{count} {origin}" for origin, count in counts.items()]
        by_arch[arch] = next(iter(counts)) if len(counts) == 1 else ", ".join(parts) or "-"
    if len(set(by_arch.values())) == 1:
        return next(iter(by_arch.values()))
    return "; ".join(f"sm_{arch}: {text}" for arch, text in by_arch.items())


def _show_build(answer: Mapping[str, Any]) -> None:
    table(
        ("kernel", "arch", "registers", "shared", "of", "local", "bytes"),
        [(row["kernel"].replace("FTRT_", ""), *list(row.values())[1:]) for row in answer["cubins"]],
    )
    console().print(
        f"wrote {answer['bundle']}: {len(answer['cubins'])} kernels by NVRTC {answer['compiler']},"
        f" {answer['size_bytes'] / MIB:.1f} MiB"
    )


def _show_bench(answer: Mapping[str, Any]) -> None:
    table(
        ("kernel", "microseconds", "GB/s", "T operations/s"),
        [
            (
                row["kernel"].replace("FTRT_", ""),
                f"{row['microseconds']:.1f}",
                f"{row['gigabytes_per_second']:.0f}",
                f"{row['tera_operations_per_second']:.1f}" if row["operations"] else "",
            )
            for row in answer["kernels"]
        ],
    )
    console().print(
        f"{answer['device']}: {answer['rows']} rows, {answer['features']} features, rank"
        f" {answer['rank']}; median of {answer['launches']} launches"
    )


def _show_cache(answer: Mapping[str, Any]) -> None:
    entries = answer["entries"]
    if entries:
        table(
            ("kernel", "NVRTC", "bytes", "problem"),
            [(e["label"], e["compiler"], e["size_bytes"], e["problem"]) for e in entries],
        )
    size = answer["size_bytes"] / MIB
    console().print(f"{answer['folder']}: {len(entries)} kernels, {size:.1f} MiB")


def _show_cleared(answer: Mapping[str, Any]) -> None:
    size = answer["removed_bytes"] / MIB
    console().print(f"removed {answer['removed']} files, {size:.1f} MiB, from {answer['folder']}")
    for name in answer["kept"]:
        console().print(f"not ftrt's, left there: {name}")
