"""Lets the tests of this folder import the modules that stand above it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
