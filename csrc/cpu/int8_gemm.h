// What the driver (int8_linear.cpp) and the instruction-set kernels (int8_gemm_<isa>.cpp) agree on.
//
// Both directions are one product, c = a · b with b made of int8 weights:
//   forward:  a = x  (rows, in_features),   b[k, n] = W[n, k]     (depth = in_features,  cols =
//   out_features) backward: a = dY (rows, out_features),  b[n, k] = W[n, k]     (depth =
//   out_features, cols = in_features)
#pragma once

#include <cstdint>

#include "ftrt/int8_linear.h"

namespace ftrt::cpu {

enum class Direction { kForward, kBackward };

struct Int8Gemm {
  const void* a;      // (rows, depth), dtype, row stride a_stride elements
  void* c;            // (rows, cols), dtype, row-major
  const float* bias;  // (cols) or nullptr
  Int8Weight weight;
  DType dtype;
  Direction direction;
  int64_t rows;
  int64_t depth;
  int64_t cols;
  int64_t a_stride;
};

// The part of c one task computes: rows [row, row + rows), columns [col, col + cols).
struct Block {
  int64_t row, rows;
  int64_t col, cols;
};

// Upper bounds of a block. A task holds a block of a (kMaxRows x kMaxDepth float32, 656 KB) in L2
// while the panels of b (kMaxDepth x 16 or 32 float32, at most 48 KB) pass through L1. A panel is
// made from int8 once for all rows of the block, which costs about as much as 16 rows of
// arithmetic: 4 % at 420 rows. 420 is a multiple of every tile's rows.
inline constexpr int64_t kMaxRows = 420;
inline constexpr int64_t kMaxCols = 512;
inline constexpr int64_t kMaxDepth = 384;

// Row stride of the packed a. 16 floats of padding: with a power-of-two stride all rows would share
// one L1 set.
inline constexpr int64_t kPackedStride = kMaxDepth + 16;

inline constexpr int64_t kMaxPanelCols = 32;

// Floats of scratch a task needs: packed a, one panel of b, and a float32 block of c for bfloat16
// outputs.
inline constexpr int64_t kScratchA = kMaxRows * kPackedStride;
inline constexpr int64_t kScratchB = kMaxDepth * kMaxPanelCols;
inline constexpr int64_t kScratchC = kMaxRows * kMaxCols;
inline constexpr int64_t kScratchFloats = kScratchA + kScratchB + kScratchC;

// One compiled kernel. `compute` writes one block; scratch is kScratchFloats floats, 64-byte
// aligned, its own.
struct Int8GemmKernel {
  int64_t tile_rows;
  int64_t tile_cols;
  void (*compute)(const Int8Gemm& gemm, const Block& block, float* scratch);
};

extern const Int8GemmKernel kInt8GemmPortable;
extern const Int8GemmKernel kInt8GemmAvx2;
extern const Int8GemmKernel kInt8GemmAvx512;

}  // namespace ftrt::cpu
