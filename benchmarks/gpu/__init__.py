"""Benchmarks on one GPU, in stages; `run.py` is the command."""
