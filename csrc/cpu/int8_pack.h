// Moving operands into the layouts of int8_gemm_kernel.h. The same rules: included once per
// instruction set, internal linkage only, no standard-library templates.
#pragma once

#include <cstdint>
#include <cstring>

#include "int8_gemm.h"

namespace ftrt::cpu {
namespace {

inline constexpr int kPackCols = 16;

typedef int8_t Bytes __attribute__((vector_size(16)));
typedef int16_t Words __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats16 __attribute__((vector_size(64)));

#if defined(__clang__) || __GNUC__ >= 12
#define FTRT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FTRT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Bytes){__VA_ARGS__})
#endif

inline Bytes interleave_low(const Bytes& a, const Bytes& b) {
  return FTRT_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

inline Bytes interleave_high(const Bytes& a, const Bytes& b) {
  return FTRT_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

#undef FTRT_SHUFFLE

// out[j] = in[j] · scale[j] over 16 columns. The step through 16 bits is what GCC turns into vector
// instructions; it takes int8 to int32 in one step element by element.
inline void widen(const Bytes& in, const Floats16& scale, float* out) {
  const Ints wide = __builtin_convertvector(__builtin_convertvector(in, Words), Ints);
  const Floats16 value = __builtin_convertvector(wide, Floats16) * scale;
  std::memcpy(out, &value, sizeof(value));
}

// Perfect shuffle of 16 rows: row i + 8 is interleaved with row i, byte by byte.
inline void interleave_rows(const Bytes* in, Bytes* out) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    out[2 * i] = interleave_low(in[i], in[i + 8]);
    out[2 * i + 1] = interleave_high(in[i], in[i + 8]);
  }
}

// columns[k][n] = rows[n][k], 16 x 16 bytes. Each shuffle moves one of the four bits of the row
// number into the column number.
inline void transpose(const Bytes* rows, Bytes* columns) {
  Bytes even[16];
  Bytes odd[16];
  interleave_rows(rows, even);
  interleave_rows(even, odd);
  interleave_rows(odd, even);
  interleave_rows(even, columns);
}

// out = the scales of 16 rows n of W in one group. By reference: how a vector is passed by value
// depends on the -m flags.
inline void load_scales(const Int8Weight& weight, int64_t n0, int64_t cols, int64_t group,
                        Floats16& out) {
  out = Floats16{};
  for (int64_t j = 0; j < cols; ++j) out[j] = weight.scale[(n0 + j) * weight.groups + group];
}

// b[k, n] = W[n, k] (· scale, if per group) for 16 columns n, of which `cols` exist; the others
// become 0.
//   b: 16 columns of a panel (depth, kCols).
template <int kCols>
void pack_forward(const Int8Weight& weight, int64_t k0, int64_t depth, int64_t n0, int64_t cols,
                  float* b) {
  const int64_t group_size = weight.in_features / weight.groups;
  const int8_t* q = weight.q + n0 * weight.in_features + k0;
  Floats16 scale = Floats16{} + 1.0f;
  int64_t group_end = weight.groups == 1 ? depth : 0;
  Bytes rows[16] = {};
  Bytes columns[16];
  for (int64_t k = 0; k < depth; k += 16) {
    const int64_t count = depth - k < 16 ? depth - k : 16;
    if (count == 16 && cols == 16) {
#pragma GCC unroll 16
      for (int64_t j = 0; j < 16; ++j) std::memcpy(&rows[j], q + j * weight.in_features + k, 16);
    } else {
      for (int64_t j = 0; j < cols; ++j) {
        std::memcpy(&rows[j], q + j * weight.in_features + k, static_cast<size_t>(count));
      }
    }
    transpose(rows, columns);
    if (k + count <= group_end) {
      for (int64_t i = 0; i < count; ++i) widen(columns[i], scale, b + (k + i) * kCols);
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (k + i >= group_end) {
        const int64_t group = (k0 + k + i) / group_size;
        group_end = (group + 1) * group_size - k0;
        load_scales(weight, n0, cols, group, scale);
      }
      widen(columns[i], scale, b + (k + i) * kCols);
    }
  }
}

// b[n, k] = W[n, k] · scale for 16 columns k, of which `cols` exist, and rows n0.. of W, `depth` of
// them.
//   b: 16 columns of a panel (depth, kCols).
template <int kCols>
void pack_backward(const Int8Weight& weight, int64_t n0, int64_t depth, int64_t k0, int64_t cols,
                   float* b) {
  const int64_t group_size = weight.in_features / weight.groups;
  const int8_t* q = weight.q + n0 * weight.in_features + k0;
  const float* scales = weight.scale + n0 * weight.groups;
  const int64_t first = k0 / group_size;
  if (cols == kPackCols && first == (k0 + kPackCols - 1) / group_size) {
    for (int64_t i = 0; i < depth; ++i, q += weight.in_features) {
      Bytes row;
      std::memcpy(&row, q, kPackCols);
      widen(row, Floats16{} + scales[i * weight.groups + first], b + i * kCols);
    }
    return;
  }
  for (int64_t i = 0; i < depth; ++i, q += weight.in_features) {
    Bytes row = {};
    Floats16 scale = {};
    for (int64_t j = 0; j < cols; ++j) {
      row[j] = q[j];
      scale[j] = scales[i * weight.groups + (k0 + j) / group_size];
    }
    widen(row, scale, b + i * kCols);
  }
}

// The panel b (depth, kCols) of columns [col, col + cols), rows [k, k + depth), as float32; missing
// columns are 0.
template <int kCols>
void pack_panel(const Int8Gemm& gemm, int64_t k, int64_t depth, int64_t col, int64_t cols,
                float* b) {
  for (int64_t j = 0; j < kCols; j += kPackCols) {
    const int64_t left = cols - j;
    const int64_t here = left < 0 ? 0 : (left < kPackCols ? left : kPackCols);
    if (gemm.direction == Direction::kForward) {
      pack_forward<kCols>(gemm.weight, k, depth, here == 0 ? 0 : col + j, here, b + j);
    } else {
      pack_backward<kCols>(gemm.weight, k, depth, here == 0 ? 0 : col + j, here, b + j);
    }
  }
}

// Rows of the block of `a`, columns [k, k + depth), as float32 at stride kPackedStride.
inline void pack_rows(const Int8Gemm& gemm, const Block& block, int64_t k, int64_t depth,
                      float* out) {
  for (int64_t i = 0; i < block.rows; ++i, out += kPackedStride) {
    const int64_t offset = (block.row + i) * gemm.a_stride + k;
    if (gemm.dtype == DType::kFloat32) {
      std::memcpy(out, static_cast<const float*>(gemm.a) + offset,
                  static_cast<size_t>(depth) * sizeof(float));
      continue;
    }
    const uint16_t* in = static_cast<const uint16_t*>(gemm.a) + offset;
    for (int64_t j = 0; j < depth; ++j) {
      const uint32_t bits = static_cast<uint32_t>(in[j]) << 16;
      std::memcpy(out + j, &bits, sizeof(bits));
    }
  }
}

// c (block.rows, block.cols) float32, row-major, rounded to nearest even into the bfloat16 output.
inline void store_bfloat16(const Int8Gemm& gemm, const Block& block, const float* c) {
  for (int64_t i = 0; i < block.rows; ++i, c += block.cols) {
    uint16_t* out = static_cast<uint16_t*>(gemm.c) + (block.row + i) * gemm.cols + block.col;
    for (int64_t j = 0; j < block.cols; ++j) {
      uint32_t bits;
      std::memcpy(&bits, c + j, sizeof(bits));
      // Rounding must not carry a NaN's mantissa into infinity: NaNs are truncated with the quiet
      // bit set.
      const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      const uint32_t quiet = (bits >> 16) | 0x40u;
      out[j] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
  }
}

}  // namespace
}  // namespace ftrt::cpu
