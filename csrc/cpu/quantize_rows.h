// Symmetric int8 quantization of rows, compiled once per instruction set. The rules of gemm_tile.h
// hold.
#pragma once

#include "gemm_pack.h"

namespace ftrt::cpu {
namespace {

inline constexpr int64_t kQuantizeChunk = 512;

// Sixteen values, times their column's scale.
inline void quantize_input(const QuantizeRows& task, int64_t row, int64_t k, int64_t count,
                           float* out) {
  widen_row(element_at(task.x, task.type, row * task.stride + k), task.type, count, out);
  if (task.col_scale != nullptr) {
    for (int64_t i = 0; i < count; ++i) out[i] *= task.col_scale[k + i];
  }
}

// Zeroes the outlier columns among [k, k + count); `next` is the first one not passed yet.
inline void zero_outliers(const QuantizeRows& task, int64_t k, int64_t count, int64_t& next,
                          float* values) {
  for (; next < task.outlier_count && task.outliers[next] < k + count; ++next) {
    values[task.outliers[next] - k] = 0.0f;
  }
}

// max |x| of a row. A NaN is the largest: as bits, positive floats are ordered like whole numbers
// and NaNs stand above infinity.
inline float row_maximum(const QuantizeRows& task, int64_t row) {
  typedef int32_t Bits __attribute__((vector_size(64)));
  Bits most = {};
  int64_t next = 0;
  for (int64_t k = 0; k < task.features; k += kQuantizeChunk) {
    const int64_t left = task.features - k;
    const int64_t count = left < kQuantizeChunk ? left : kQuantizeChunk;
    alignas(64) float values[kQuantizeChunk];
    quantize_input(task, row, k, count, values);
    for (int64_t i = count; i % 16 != 0; ++i) values[i] = 0.0f;
    zero_outliers(task, k, count, next, values);
    for (int64_t i = 0; i < count; i += 16) {
      Bits bits;
      std::memcpy(&bits, values + i, 64);
      bits &= 0x7fffffff;
      most = bits > most ? bits : most;
    }
  }
  int32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits = most[i] > bits ? most[i] : bits;
  float maximum;
  std::memcpy(&maximum, &bits, sizeof(maximum));
  return maximum;
}

// q = round(x / scale), halves to even, within -127..127. Adding and subtracting 1.5 · 2^23 rounds
// a float below 2^22 to a whole number as the FPU's default mode does.
inline void quantize_row(const QuantizeRows& task, int64_t row) {
  const float maximum = row_maximum(task, row);
  float scale = maximum / 127.0f;
  // zero, or less than the smallest float32: everything rounds to 0
  if (scale == 0.0f) scale = 1.0f;
  task.scale[row] = scale;
  // NaN or infinite: q is arbitrary, the scale makes the row's results NaN
  const bool is_finite = maximum <= 3.4028234e38f;
  int8_t* out = task.q + row * task.features;
  int64_t next = 0;
  for (int64_t k = 0; k < task.features; k += kQuantizeChunk) {
    const int64_t left = task.features - k;
    const int64_t count = left < kQuantizeChunk ? left : kQuantizeChunk;
    alignas(64) float values[kQuantizeChunk];
    quantize_input(task, row, k, count, values);
    zero_outliers(task, k, count, next, values);
    if (!is_finite) {
      std::memset(out + k, 0, static_cast<size_t>(count));
      continue;
    }
    constexpr float kRound = 12582912.0f;
    for (int64_t i = 0; i < count; ++i) values[i] = values[i] / scale;
    for (int64_t i = 0; i < count; ++i) {
      float level = values[i] + kRound;
      level -= kRound;
      level = level < -127.0f ? -127.0f : level;
      level = level > 127.0f ? 127.0f : level;
      out[k + i] = static_cast<int8_t>(static_cast<int32_t>(level));
    }
  }
}

void quantize_rows(const QuantizeRows& task, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) quantize_row(task, row);
}

}  // namespace
}  // namespace ftrt::cpu
