// Linear layers with int8 weights: y = x dequantize(W)ᵀ + bias and dX = dY dequantize(W).
//
// dequantize(W)[n, k] = q[n, k] · scale[n, k / group_size], group_size = in_features / groups;
// LLM.int8's row-wise weight format is groups = 1 (Dettmers et al. 2022,
// https://arxiv.org/abs/2208.07339, section 2.1).
#pragma once

#include <cstdint>

#include "ftrt/parallel.h"

namespace ftrt {

enum class DType { kFloat32, kBFloat16 };

struct Int8Weight {
  const int8_t* q;     // (out_features, in_features), row-major
  const float* scale;  // (out_features, groups), row-major
  int64_t out_features;
  int64_t in_features;
  int64_t groups;  // divides in_features
};

// y = x dequantize(weight)ᵀ + bias; products are accumulated in float32, y is rounded once.
//
//   x:    (rows, in_features), `dtype`; row m starts at x + m · x_stride elements.
//   bias: (out_features) float32, or nullptr.
//   y:    (rows, out_features), `dtype`, row-major, written.
//
// Throws std::bad_alloc if the scratch memory (about 1 MB a thread) cannot be had; no other failure
// is possible.
void int8_linear(const void* x, int64_t rows, int64_t x_stride, DType dtype,
                 const Int8Weight& weight, const float* bias, void* y, const Threads& threads);

// dx = dy dequantize(weight); accumulated in float32, rounded once.
//
//   dy: (rows, out_features), `dtype`; row m starts at dy + m · dy_stride elements.
//   dx: (rows, in_features), `dtype`, row-major, written.
void int8_linear_dx(const void* dy, int64_t rows, int64_t dy_stride, DType dtype,
                    const Int8Weight& weight, void* dx, const Threads& threads);

}  // namespace ftrt
