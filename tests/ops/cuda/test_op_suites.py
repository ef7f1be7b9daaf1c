"""The suites of the ops, run once more on the CUDA implementations: on emulated kernels, and on a
GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[3]
SUITES = (
    "tests/ops/test_quantize_ops.py",
    "tests/ops/test_int8_linear_op.py",
    "tests/ops/test_int8_linear_w8a8.py",
    "tests/ops/test_lora_ops.py",
    "tests/ops/test_lora_op_modes.py",
    "tests/ops/test_w8a8_lora_linear.py",
    "tests/ops/test_op_errors.py",
    "tests/ops/test_dropout_mask.py",
    "tests/nn/test_low_rank_routes.py",
)
# 10000 steps: emulated, minutes.
LONG = "not leave_no_memory_behind"


@pytest.mark.parametrize(
    "place",
    [
        "emulated",
        pytest.param(
            "device",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no usable GPU"),
        ),
    ],
)
def test_the_suites_pass(place):
    selection = ["-k", LONG] if place == "emulated" else []
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *SUITES, *selection],
        cwd=REPOSITORY,
        env={**os.environ, "FTRT_TEST_CUDA": place},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
