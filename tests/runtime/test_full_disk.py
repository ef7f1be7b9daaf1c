"""A disk that fills up while training costs the run, not the last good checkpoint, and says what to
do.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import ftrt
from ftrt.cli.faults import explain
import json
tree = json.loads(sys.argv[1])
try:
    ftrt.train(tree)
except Exception as error:
    fault = explain(error)
    print(fault.exit_code, fault.message)
"""


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 400 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"mounting is not allowed here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_named_with_the_fix(recipe_tree, small_disk):
    import json

    recipe_tree["output"] = str(small_disk / "run")
    recipe_tree["method"] = {"name": "lora", "rank": 64, "alpha": 64}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(recipe_tree)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.startswith("5 "), done.stdout + done.stderr
    assert "space" in done.stdout
