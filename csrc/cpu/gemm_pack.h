// Moving the operands of gemm.h into rows and panels of 4-byte lanes. The rules of gemm_tile.h
// hold.
#pragma once

#include <cstdint>
#include <cstring>

#include "gemm.h"
#include "lanes.h"

namespace ftrt::cpu {
namespace {

// Elements [row, k..k + count) of a as float32.
inline void left_row(const Left& left, int64_t row, int64_t k, int64_t count, float* out) {
  if (left.transposed) {
    const float* from = static_cast<const float*>(left.data) + k * left.stride + row;
    for (int64_t i = 0; i < count; ++i) out[i] = from[i * left.stride];
  } else {
    widen_row(element_at(left.data, left.type, row * left.stride + k), left.type, count, out);
  }
  if (left.depth_scale != nullptr) {
    for (int64_t i = 0; i < count; ++i) out[i] *= left.depth_scale[k + i];
  }
  if (left.dropout.threshold != 0) drop(left.dropout, row, k, count, out);
}

// One row of the packed a: `count` values of kind kKind, then zeros up to 64 bytes.
template <Kind kKind>
void pack_left_row(const Left& left, int64_t row, int64_t k, int64_t count, uint8_t* out) {
  const bool is_plain =
      !left.transposed && left.depth_scale == nullptr && left.dropout.threshold == 0;
  const uint8_t* from = element_at(left.data, left.type, row * left.stride + k);
  int64_t bytes = count * 4 / lane_depth(kKind);
  if constexpr (kKind == Kind::kS8x4) {
    std::memcpy(out, from, static_cast<size_t>(count));
  } else if constexpr (kKind == Kind::kS16x2) {
    int16_t* to = reinterpret_cast<int16_t*>(out);
    for (int64_t i = 0; i < count; ++i) to[i] = reinterpret_cast<const int8_t*>(from)[i];
  } else if constexpr (kKind == Kind::kBf16x2) {
    if (is_plain && left.type == Element::kBFloat16) {
      std::memcpy(out, from, static_cast<size_t>(bytes));
    } else {
      float values[kSliceBytes / 2];
      left_row(left, row, k, count, values);
      uint16_t* to = reinterpret_cast<uint16_t*>(out);
      for (int64_t i = 0; i < count; ++i) to[i] = to_bf16(values[i]);
    }
  } else {
    left_row(left, row, k, count, reinterpret_cast<float*>(out));
  }
  const int64_t whole = (bytes + 63) / 64 * 64;
  std::memset(out + bytes, 0, static_cast<size_t>(whole - bytes));
}

// 64 bytes of int8 weights, 4 out_features by 16 in_features from 16 out_features by 4: in four
// steps of a packed weight, which follow each other, to four steps of the other direction.
//   in, out: 256 bytes
inline void transpose_quads(const uint8_t* in, uint8_t* out) {
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 4; ++i) {
      Bytes16 chunk;
      std::memcpy(&chunk, in + i * 64 + j * 16, 16);
#if defined(__clang__) || __GNUC__ >= 12
      chunk = __builtin_shufflevector(chunk, chunk, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7,
                                      11, 15);
#else
      chunk = __builtin_shuffle(
          chunk, (Bytes16){0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15});
#endif
      std::memcpy(out + j * 64 + i * 16, &chunk, 16);
    }
  }
}

// Four steps of 16 columns of b, for depths k.. k + 15 (from a multiple of 16 on), as packed int8.
template <class Set>
void load_quads(const Right& right, int64_t k, int64_t col, uint8_t* quads) {
  const uint8_t* q = static_cast<const uint8_t*>(right.data);
  if (right.layout == Right::Layout::kInt8Forward) {
    const int64_t left = (right.panel_steps - k / 4) * 64;
    q += (col / 16 * right.panel_steps + k / 4) * 64;
    if (left >= 256) {
      std::memcpy(quads, q, 256);
    } else {
      std::memcpy(quads, q, static_cast<size_t>(left));
    }
    return;
  }
  const int64_t left = (right.panel_steps - col / 4) * 64;
  q += (k / 16 * right.panel_steps + col / 4) * 64;
  if (left >= 256) return Set::transpose_quads(q, quads);
  alignas(64) uint8_t last[256] = {};
  std::memcpy(last, q, static_cast<size_t>(left));
  Set::transpose_quads(last, quads);
}

// The scales of 16 weights: columns [col, col + 16) of b at depth k; 0 where there is no weight.
inline void quad_scale(const Right& right, int64_t k, int64_t depth, int64_t col, int64_t cols,
                       Floats16& out) {
  out = Floats16{};
  if (k >= depth) return;
  for (int64_t j = 0; j < 16 && col + j < cols; ++j) {
    const bool forward = right.layout == Right::Layout::kInt8Forward;
    const int64_t n = forward ? col + j : k;
    const int64_t feature = forward ? k : col + j;
    out[j] = right.scale[n * right.groups + feature / right.group_size];
  }
}

// Sixteen values of row k of b, from column col, of which `cols` exist; the others become 0.
inline void right_row(const Right& right, int64_t k, int64_t col, int64_t cols, Floats16& out) {
  const bool is_rows = right.layout == Right::Layout::kRows;
  if (is_rows && cols >= 16 && right.dropout.threshold == 0) {
    widen16(element_at(right.data, right.type, k * right.stride + col), right.type, out);
    return;
  }
  float values[16] = {};
  const int64_t count = cols < 16 ? cols : 16;
  if (is_rows) {
    widen_row(element_at(right.data, right.type, k * right.stride + col), right.type, count,
              values);
    if (right.dropout.threshold != 0) drop(right.dropout, k, col, count, values);
  } else {
    for (int64_t j = 0; j < count; ++j) {
      widen_row(element_at(right.data, right.type, (col + j) * right.stride + k), right.type, 1,
                values + j);
    }
  }
  std::memcpy(&out, values, sizeof(values));
}

// Lanes that are 4 bytes of a row of `data`, which holds the columns of b: copied as they are.
inline void copy_columns(const Right& right, int64_t k, int64_t steps, int64_t col, int64_t cols,
                         uint8_t* out) {
  const int64_t count = cols < 16 ? cols : 16;
  if (count < 16) std::memset(out, 0, static_cast<size_t>(steps * kPanelBytes));
  for (int64_t j = 0; j < count; ++j) {
    const uint8_t* from = element_at(right.data, right.type, (col + j) * right.stride + k);
    for (int64_t s = 0; s < steps; ++s) std::memcpy(out + s * kPanelBytes + j * 4, from + s * 4, 4);
  }
}

// A panel of floats, whatever their layout.
template <Kind kKind>
void pack_float_panel(const Right& right, int64_t k, int64_t count, int64_t col, int64_t cols,
                      uint8_t* out) {
  const bool is_columns = right.layout == Right::Layout::kColumns;
  if constexpr (kKind == Kind::kF32) {
    if (is_columns && right.type == Element::kFloat32) {
      return copy_columns(right, k, count, col, cols, out);
    }
    for (int64_t i = 0; i < count; ++i, out += kPanelBytes) {
      Floats16 value;
      right_row(right, k + i, col, cols, value);
      std::memcpy(out, &value, 64);
    }
  } else {
    if (is_columns && right.type == Element::kBFloat16 && count % 2 == 0) {
      return copy_columns(right, k, count / 2, col, cols, out);
    }
    const bool is_exact = right.type != Element::kFloat32 && right.dropout.threshold == 0;
    for (int64_t i = 0; i < count; i += 2, out += kPanelBytes) {
      Floats16 low;
      Floats16 high = {};
      right_row(right, k + i, col, cols, low);
      if (i + 1 < count) right_row(right, k + i + 1, col, cols, high);
      if (is_exact) {
        store_exact_pair(low, high, out);
      } else {
        store_bf16_pair(low, high, out);
      }
    }
  }
}

// A panel of int8 weights: `steps` lanes of kKind for depths k.. and columns [col, col + 16).
template <class Set, Kind kKind>
void pack_int8_panel(const Gemm& gemm, int64_t k, int64_t count, int64_t col, uint8_t* out) {
  const Right& right = gemm.right;
  if constexpr (kKind == Kind::kS8x4) {
    for (int64_t i = 0; i < count; i += 16, out += 256) load_quads<Set>(right, k + i, col, out);
    return;
  }
  alignas(64) uint8_t quads[256] = {};
  for (int64_t i = 0; i < count; i += 4) {
    if (i % 16 == 0) load_quads<Set>(right, k + i, col, quads);
    Ints16 quad;
    std::memcpy(&quad, quads + i % 16 * 16, 64);
    if constexpr (kKind == Kind::kS16x2) {
      const Ints16 mask = Ints16{} + 0xffff;
      const Ints16 first = (((quad << 24) >> 24) & mask) | (((quad << 16) >> 8) & ~mask);
      const Ints16 second = (((quad << 8) >> 24) & mask) | ((quad >> 8) & ~mask);
      std::memcpy(out, &first, 64);
      std::memcpy(out + 64, &second, 64);
      out += 128;
    } else {
      Floats16 value[4];
#pragma GCC unroll 4
      for (int d = 0; d < 4; ++d) {
        value[d] = __builtin_convertvector((quad << (24 - 8 * d)) >> 24, Floats16);
      }
      if (right.scale != nullptr) {
        for (int d = 0; d < 4; ++d) {
          Floats16 scale;
          quad_scale(right, k + i + d, gemm.depth, col, gemm.cols, scale);
          value[d] *= scale;
        }
      }
      if constexpr (kKind == Kind::kF32) {
        std::memcpy(out, value, 256);
        out += 256;
      } else if (right.scale != nullptr) {
        store_bf16_pair(value[0], value[1], out);
        store_bf16_pair(value[2], value[3], out + 64);
        out += 128;
      } else {
        store_exact_pair(value[0], value[1], out);
        store_exact_pair(value[2], value[3], out + 64);
        out += 128;
      }
    }
  }
}

// Lanes of one panel, and where they are: packed int8 weights need no copy for kS8x4 forward.
template <class Set, Kind kKind>
const uint8_t* pack_panel(const Gemm& gemm, int64_t k, int64_t count, int64_t col, uint8_t* out) {
  const Right& right = gemm.right;
  const bool is_int8 = right.layout == Right::Layout::kInt8Forward ||
                       right.layout == Right::Layout::kInt8Backward;
  if (is_int8) {
    if (kKind == Kind::kS8x4 && right.layout == Right::Layout::kInt8Forward) {
      return static_cast<const uint8_t*>(right.data) +
             (col / 16 * right.panel_steps + k / 4) * 64;
    }
    pack_int8_panel<Set, kKind>(gemm, k, count, col, out);
  } else if constexpr (kKind == Kind::kF32 || kKind == Kind::kBf16x2) {
    pack_float_panel<kKind>(right, k, count, col, gemm.cols - col, out);
  }
  return out;
}

}  // namespace
}  // namespace ftrt::cpu
