// Runs a Gemm over the caller's threads on the chosen instruction set.
#pragma once

#include "ftrt/parallel.h"
#include "gemm.h"

namespace ftrt::cpu {

// The kernels of the chosen instruction set.
const KernelSet& chosen_kernels();

// How products of int8 by int8 are computed there.
Kind int8_kind();

// How products of floats are computed there, for operands of this type: bfloat16 stays bfloat16
// where there are instructions for it and is widened elsewhere.
Kind float_kind(Element type);

// gemm.kind is int8_kind() or a float kind; low_kind is a float kind. Throws std::bad_alloc if the
// scratch memory (about 1 MB a thread) cannot be had.
void run_gemm(const Gemm& gemm, const Threads& threads);

// Quantizes rows [0, rows) of the task.
void run_quantize(const QuantizeRows& task, int64_t rows, const Threads& threads);

}  // namespace ftrt::cpu
