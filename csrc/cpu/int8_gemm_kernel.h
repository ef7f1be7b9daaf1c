// The blocked int8-weight GEMM, written once for every vector width with GCC/Clang vector
// extensions.
//
// Included by exactly one translation unit per instruction set, each compiled with its own -m
// flags. Everything is in an unnamed namespace, and no standard-library template is used: a
// function that two such units shared would be kept once by the linker, and an AVX512 copy might be
// the one a CPU without AVX512 runs.
#pragma once

#include <cstdint>
#include <cstring>

#include "int8_gemm.h"
#include "int8_pack.h"

namespace ftrt::cpu {
namespace {

// kWidth: floats in a vector. kRows x kVectors: the register tile of c, in vectors.
template <int kWidth, int kRows, int kVectors>
struct Int8GemmTile {
  typedef float Floats __attribute__((vector_size(4 * kWidth)));
  static constexpr int kCols = kWidth * kVectors;
  static constexpr int kLine = 64 / sizeof(float);
  static_assert(kCols <= kMaxPanelCols && kCols % kPackCols == 0,
                "a panel is packed 16 columns at a time");

  // Where the results of a tile go, and what happens to them on the way.
  struct Output {
    float* c;  // (rows, stride)
    int64_t stride;
    bool accumulate;     // add to what c holds
    bool finish;         // the last slice of depth: apply scale and bias
    const float* scale;  // (kCols), 1 where there is none
    const float* bias;   // (kCols), 0 where there is none
  };

  static Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }

  static void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }

  // c (kTileRows, kCols) from a (kTileRows, kPackedStride) and b (depth, kCols); sums stay in
  // registers.
  template <int kTileRows>
  static void tile(const float* a, const float* b, int64_t depth, const Output& out) {
    // The lines of c are far away; they arrive while the sums are made.
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      for (int j = 0; j < kCols; j += kLine) __builtin_prefetch(out.c + i * out.stride + j, 1);
    }
    Floats sum[kTileRows][kVectors] = {};
    for (int64_t k = 0; k < depth; ++k) {
      Floats bk[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) bk[v] = load(b + k * kCols + v * kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        const float ai = a[i * kPackedStride + k];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[i][v] += ai * bk[v];
      }
    }
    const bool accumulate = out.accumulate;
    const bool finish = out.finish;
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* c = out.c + i * out.stride + v * kWidth;
        Floats value = sum[i][v];
        if (accumulate) value += load(c);
        if (finish) value = value * load(out.scale + v * kWidth) + load(out.bias + v * kWidth);
        store(c, value);
      }
    }
  }

  using TileFunction = void (*)(const float*, const float*, int64_t, const Output&);

  // The tile with `rows` (1..kRows) rows, for the last rows of a block.
  template <int kTileRows = kRows>
  static TileFunction tile_for(int64_t rows) {
    if constexpr (kTileRows == 1) {
      return &tile<1>;
    } else {
      return rows == kTileRows ? &tile<kTileRows> : tile_for<kTileRows - 1>(rows);
    }
  }

  static void rows_of_tiles(const float* a, const float* b, int64_t rows, int64_t depth,
                            Output out) {
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows, out.c += kRows * out.stride) {
      tile<kRows>(a + i * kPackedStride, b, depth, out);
    }
    if (i < rows) tile_for<kRows>(rows - i)(a + i * kPackedStride, b, depth, out);
  }

  // One panel of b against every row of the packed a; `cols` of the panel's columns exist in c.
  static void panel(const float* a, const float* b, int64_t rows, int64_t cols, int64_t depth,
                    const Output& out) {
    if (cols == kCols) return rows_of_tiles(a, b, rows, depth, out);
    // A tile writes whole vectors, so the last columns go through a tile of their own.
    float whole[kRows * kCols] = {};
    Output into = out;
    into.c = whole;
    into.stride = kCols;
    const size_t bytes = static_cast<size_t>(cols) * sizeof(float);
    for (int64_t i = 0; i < rows; i += kRows) {
      const int64_t count = rows - i < kRows ? rows - i : kRows;
      float* c = out.c + i * out.stride;
      for (int64_t r = 0; out.accumulate && r < count; ++r)
        std::memcpy(whole + r * kCols, c + r * out.stride, bytes);
      rows_of_tiles(a + i * kPackedStride, b, count, depth, into);
      for (int64_t r = 0; r < count; ++r) std::memcpy(c + r * out.stride, whole + r * kCols, bytes);
    }
  }

  // Scale and bias of the columns [col, col + cols). Backward and per-group forward have the scale
  // in b already.
  static void load_epilogue(const Int8Gemm& gemm, int64_t col, int64_t cols, float* scale,
                            float* bias) {
    const bool scaled = gemm.direction == Direction::kForward && gemm.weight.groups == 1;
    for (int64_t j = 0; j < kCols; ++j) {
      scale[j] = scaled && j < cols ? gemm.weight.scale[col + j] : 1.0f;
      bias[j] = gemm.bias != nullptr && j < cols ? gemm.bias[col + j] : 0.0f;
    }
  }

  static void compute(const Int8Gemm& gemm, const Block& block, float* scratch) {
    float* a = scratch;
    float* b = a + kScratchA;
    const bool direct = gemm.dtype == DType::kFloat32;
    const int64_t stride = direct ? gemm.cols : block.cols;
    float* c =
        direct ? static_cast<float*>(gemm.c) + block.row * gemm.cols + block.col : b + kScratchB;
    // Slices of equal depth: 384 as 2 x 192, not 256 + 128.
    const int64_t slices = (gemm.depth + kMaxDepth - 1) / kMaxDepth;
    for (int64_t slice = 0; slice < slices; ++slice) {
      const int64_t k = slice * gemm.depth / slices;
      const int64_t depth = (slice + 1) * gemm.depth / slices - k;
      pack_rows(gemm, block, k, depth, a);
      for (int64_t j = 0; j < block.cols; j += kCols) {
        const int64_t cols = block.cols - j < kCols ? block.cols - j : kCols;
        float scale[kCols];
        float bias[kCols];
        load_epilogue(gemm, block.col + j, cols, scale, bias);
        pack_panel<kCols>(gemm, k, depth, block.col + j, cols, b);
        panel(a, b, block.rows, cols, depth,
              {c + j, stride, slice > 0, slice + 1 == slices, scale, bias});
      }
    }
    if (!direct) store_bfloat16(gemm, block, c);
  }
};

}  // namespace
}  // namespace ftrt::cpu
