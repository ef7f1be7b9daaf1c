// Symmetric int8 quantization of rows, compiled once per instruction set. The rules of gemm_tile.h
// hold.
#pragma once

#include "gemm_pack.h"

namespace ftrt::cpu {
namespace {

typedef int16_t Shorts16 __attribute__((vector_size(32)));

// Sixteen values of a row from column k on, times their columns' scales; 0 past the row's end.
inline void quantize_input(const QuantizeRows& task, const uint8_t* row, int64_t k,
                           Floats16& out) {
  const uint8_t* from = element_at(row, task.type, k);
  if (task.features - k >= 16) {
    widen16(from, task.type, out);
    if (task.col_scale == nullptr) return;
    Floats16 scale;
    std::memcpy(&scale, task.col_scale + k, 64);
    out *= scale;
    return;
  }
  float values[16] = {};
  widen_row(from, task.type, task.features - k, values);
  for (int64_t i = 0; task.col_scale != nullptr && i < task.features - k; ++i) {
    values[i] *= task.col_scale[k + i];
  }
  std::memcpy(&out, values, 64);
}

// Zeroes the outlier columns among [k, k + 16); `next` is the first one not passed yet.
inline void zero_outliers(const QuantizeRows& task, int64_t k, int64_t& next, Floats16& values) {
  for (; next < task.outlier_count && task.outliers[next] < k + 16; ++next) {
    values[task.outliers[next] - k] = 0.0f;
  }
}

// max |x| of a row. A NaN is the largest: as bits, positive floats are ordered like whole numbers
// and NaNs stand above infinity.
inline float row_maximum(const QuantizeRows& task, const uint8_t* row) {
  Ints16 most = {};
  int64_t next = 0;
  for (int64_t k = 0; k < task.features; k += 16) {
    Floats16 values;
    quantize_input(task, row, k, values);
    if (next < task.outlier_count) zero_outliers(task, k, next, values);
    Ints16 bits;
    std::memcpy(&bits, &values, 64);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  int32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits = most[i] > bits ? most[i] : bits;
  float maximum;
  std::memcpy(&maximum, &bits, sizeof(maximum));
  return maximum;
}

// q = round(x / scale), halves to even, within -127..127. Adding 1.5 · 2^23 rounds a float below
// 2^22 to a whole number, as the FPU's default mode does, and leaves it in the low bits.
inline void quantize_row(const QuantizeRows& task, int64_t index) {
  const uint8_t* row = element_at(task.x, task.type, index * task.stride);
  const float maximum = row_maximum(task, row);
  float scale = maximum / 127.0f;
  // zero, or less than the smallest float32: everything rounds to 0
  if (scale == 0.0f) scale = 1.0f;
  task.scale[index] = scale;
  int8_t* out = task.q + index * task.features;
  if (!(maximum <= 3.4028234e38f)) {
    // NaN or infinite: the scale makes whatever is computed from the row NaN
    std::memset(out, 0, static_cast<size_t>(task.features));
    return;
  }
  constexpr float kSmallestNormal = 1.17549435e-38f;
  constexpr float kRound = 12582912.0f;
  // a subnormal's reciprocal may be infinite
  const bool divides = task.divides || scale < kSmallestNormal;
  const float inverse = 1.0f / scale;
  int64_t next = 0;
  for (int64_t k = 0; k < task.features; k += 16) {
    Floats16 values;
    quantize_input(task, row, k, values);
    if (next < task.outlier_count) zero_outliers(task, k, next, values);
    values = divides ? values / scale : values * inverse;
    values = values < -127.0f ? Floats16{} - 127.0f : values;
    values = values > 127.0f ? Floats16{} + 127.0f : values;
    const Floats16 rounded = values + kRound;
    Ints16 bits;
    std::memcpy(&bits, &rounded, 64);
    // low halves, then low bytes: two conversions that have instructions
    const Bytes16 bytes =
        __builtin_convertvector(__builtin_convertvector(bits, Shorts16), Bytes16);
    if (task.features - k >= 16) {
      std::memcpy(out + k, &bytes, 16);
    } else {
      std::memcpy(out + k, &bytes, static_cast<size_t>(task.features - k));
    }
  }
}

void quantize_rows(const QuantizeRows& task, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) quantize_row(task, row);
}

}  // namespace
}  // namespace ftrt::cpu
