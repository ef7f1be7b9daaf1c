// The inner loops of gemm.h: a tile of sums in registers, and what is done to them when they are
// complete. Templates over an instruction set's `Dot` (dots_*.h) and the tile's size.
//
// The rules of every header that several instruction sets include: internal linkage only, nothing
// of the standard library that has code.
#pragma once

#include <cstdint>
#include <cstring>

#include "gemm.h"

namespace ftrt::cpu {
namespace {

// kRows rows by kPanels panels of 16 columns, `steps` lanes deep.
template <class Dot, int kRows, int kPanels>
struct Tile {
  using Sum = typename Dot::Sum;
  static constexpr int kPerPanel = static_cast<int>(kPanelCols) / Dot::kWidth;
  static constexpr int kVectors = kPanels * kPerPanel;

  // sum[i][v] += a[i] · b[v]
  //   a: rows at a_stride bytes, steps · 4 bytes each.
  //   b: panels at b_stride bytes, steps · 64 bytes each.
  static inline __attribute__((always_inline)) void multiply(const uint8_t* a, int64_t a_stride,
                                                             const uint8_t* b, int64_t b_stride,
                                                             int64_t steps,
                                                             Sum (&sum)[kRows][kVectors]) {
    for (int64_t s = 0; s < steps; ++s) {
      typename Dot::Lanes bs[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        bs[v] = Dot::load_right(b + (v / kPerPanel) * b_stride +
                                (v % kPerPanel) * (4 * Dot::kWidth));
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const typename Dot::Lanes ai = Dot::broadcast(a + i * a_stride);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[i][v] = Dot::dot(sum[i][v], ai, bs[v]);
      }
      a += 4;
      b += kPanelBytes;
    }
  }

  // One slice of depth into c, (kRows, kPanels · 16) sums at c_stride elements. `correction`
  // (kRows) is subtracted where the kind needs one (Dot::kCorrects).
  static void slice(const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t b_stride,
                    int64_t steps, const int32_t* correction, typename Dot::SumElement* c,
                    int64_t c_stride, bool accumulate) {
    Sum sum[kRows][kVectors] = {};
    multiply(a, a_stride, b, b_stride, steps, sum);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        typename Dot::SumElement* at = c + i * c_stride + v * Dot::kWidth;
        Sum value = sum[i][v];
        if constexpr (Dot::kCorrects) value = Dot::subtract(value, correction[i]);
        if (accumulate) value = Dot::add(value, Dot::load_sum(at));
        Dot::store_sum(at, value);
      }
    }
  }

  using Slice = void (*)(const uint8_t*, int64_t, const uint8_t*, int64_t, int64_t, const int32_t*,
                         typename Dot::SumElement*, int64_t, bool);

  // The same with `rows` rows, 1..kRows.
  static Slice slice_for(int64_t rows) {
    if constexpr (kRows == 1) {
      return &slice;
    } else {
      return rows == kRows ? &slice : Tile<Dot, kRows - 1, kPanels>::slice_for(rows);
    }
  }
};

// Where the epilogue of a tile finds its operands; pointers stand at the tile's first row and
// column.
struct TileEpilogue {
  const float* row_scale;  // or nullptr
  const float* col_scale;  // (panels · 16), padded with zeros
  const float* bias;       // (panels · 16), padded with zeros
  const uint8_t* low_left;  // rows at low_stride bytes, low_steps · 4 bytes each
  int64_t low_stride;
  const uint8_t* low_right;  // panels at low_panel bytes
  int64_t low_panel;
  int64_t low_steps;
  const Dropout* dropout;  // of the low-rank part, or nullptr
  int64_t row, col;        // of the tile in c
  uint8_t* c;
  Element type;
  int64_t c_stride;  // elements
};

// Finishes the sums of kRows rows of one panel: scales, low-rank part, bias, rounding.
template <class Set, class Low, int kRows>
struct Finish {
  using Floats = typename Set::Floats;
  static constexpr int kVectors = static_cast<int>(kPanelCols) / Set::kWidth;

  template <class SumElement>
  static void run(const SumElement* sums, int64_t stride, const TileEpilogue& e) {
    Floats value[kRows][kVectors] = {};
    if (e.low_steps > 0) {
      Tile<Low, kRows, 1>::multiply(e.low_left, e.low_stride, e.low_right, e.low_panel, e.low_steps,
                                    value);
      if (e.dropout != nullptr) {
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          const uint32_t key = dropout_row_key(*e.dropout, e.row + i);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            value[i][v] = Set::keep(value[i][v], key, e.col + v * Set::kWidth, *e.dropout);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const float row_scale = e.row_scale == nullptr ? 1.0f : e.row_scale[i];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = v * Set::kWidth;
        const Floats scale = Set::load(e.col_scale + at) * row_scale;
        value[i][v] += Set::to_floats(sums + i * stride + at) * scale + Set::load(e.bias + at);
        if (e.type == Element::kFloat32) {
          Set::store(reinterpret_cast<float*>(e.c) + i * e.c_stride + at, value[i][v]);
        } else {
          Set::store_bf16(reinterpret_cast<uint16_t*>(e.c) + i * e.c_stride + at, value[i][v]);
        }
      }
    }
  }

  template <class SumElement>
  static void run_rows(int64_t rows, const SumElement* sums, int64_t stride,
                       const TileEpilogue& e) {
    if constexpr (kRows == 1) {
      run(sums, stride, e);
    } else {
      if (rows == kRows) return run(sums, stride, e);
      Finish<Set, Low, kRows - 1>::run_rows(rows, sums, stride, e);
    }
  }
};

}  // namespace
}  // namespace ftrt::cpu
