"""How figures are taken, checked and kept: what the CPU and the GPU benchmarks share."""
