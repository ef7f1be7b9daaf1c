"""The linears table on a lower instruction set, ftrt and its peers held to the same class.

    python benchmarks/cpu/forced_isa.py avx2 [--quick] [--minutes 12] [--json FILE] ...
    python benchmarks/cpu/forced_isa.py avx512_vnni ...

Runs `linears.py` in a child process whose environment forces ftrt (FTRT_CPU_ISA), oneDNN
(ONEDNN_MAX_CPU_ISA), ATen's own kernels (ATEN_CPU_CAPABILITY) and MKL (MKL_ENABLE_INSTRUCTIONS),
and first shows that it was done: what torch says of its capability, and which instruction set
oneDNN prints for itself under ONEDNN_VERBOSE.

dtypes: without AVX512-BF16, torch's bfloat16 product is emulated (AVX512: about a third of float32;
AVX2: a plain loop backward, thousands of times slower), so a fair peer there is float32. `avx2`
therefore runs float32; `avx512_vnni` runs float32 and, as `linears.py` without forcing would, also
bfloat16. All other options go to `linears.py`.
"""

import sys
from pathlib import Path

# the folder that holds `measuring`
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import os
import subprocess

from measuring.records import fail

LINEARS = Path(__file__).with_name("linears.py")
CLASSES = {
    "avx2": {
        "FTRT_CPU_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512_vnni": {
        "FTRT_CPU_ISA": "avx512_vnni",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512_E1",
    },
    "avx512_bf16": {
        "FTRT_CPU_ISA": "avx512_bf16",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512_E1",
    },
}
DTYPES = {
    "avx2": ("float32",),
    "avx512_vnni": ("float32", "bfloat16"),
    "avx512_bf16": ("bfloat16",),
}
PROBE = """
import torch
print("torch capability", torch.backends.cpu.get_cpu_capability(), flush=True)
x = torch.randn(64, 64)
torch.nn.functional.linear(x, x)
q = torch.ones(64, 64, dtype=torch.int8)
torch._int_mm(q, q.t())
"""


def environment(isa: str) -> dict[str, str]:
    """The child's environment."""
    return {**os.environ, **CLASSES[isa]}


def proof(isa: str) -> list[str]:
    """What torch and oneDNN say of themselves under the forcing."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**environment(isa), "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        line
        for line in done.stdout.splitlines()
        if line.startswith("torch capability") or ",isa:" in line
    ]


def main() -> int:
    """Show the forcing, then run the table once a dtype; the worst exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("isa", choices=list(CLASSES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="one file a dtype: FILE.DTYPE")
    parser.add_argument("--minutes", type=float, default=12.0, help="of all dtypes together")
    chosen, others = parser.parse_known_args()
    print("held by: " + " ".join(f"{key}={value}" for key, value in CLASSES[chosen.isa].items()))
    lines = proof(chosen.isa)
    for line in lines:
        print(f"  {line}")
    if not lines:
        fail("forced_isa: torch and oneDNN must say which instruction set they use; got nothing")
    worst = 0
    for dtype in DTYPES[chosen.isa]:
        print(f"\n=== {chosen.isa}, {dtype}", flush=True)
        minutes = str(chosen.minutes / len(DTYPES[chosen.isa]))
        command = [sys.executable, str(LINEARS), "--dtype", dtype, "--minutes", minutes, *others]
        if chosen.json is not None:
            command += ["--json", f"{chosen.json}.{dtype}"]
        done = subprocess.run(command, env=environment(chosen.isa), check=False)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
