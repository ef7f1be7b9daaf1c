// One blocked matrix product for everything ftrt computes on the CPU: c = a · b with b packed into
// panels of 16 columns, a into rows, and both made of 4-byte lanes. What a lane holds is the kind:
//
//   kS8x4    four int8          int32 sums    vpdpbusd, tdpbssd
//   kS16x2   two int16          int32 sums    vpmaddwd
//   kBf16x2  two bfloat16       float32 sums  vdpbf16ps, tdpbf16ps
//   kF32     one float32        float32 sums  fused multiply-add
//
// Included by every instruction set's translation unit: no code, and no standard-library template.
#pragma once

#include <cstdint>

#include "ftrt/types.h"

namespace ftrt::cpu {

enum class Kind { kS8x4, kS16x2, kBf16x2, kF32 };

// Values of the depth that one 4-byte lane holds.
static inline constexpr int64_t lane_depth(Kind kind) {
  return kind == Kind::kS8x4 ? 4 : kind == Kind::kF32 ? 1 : 2;
}

static inline constexpr bool sums_are_int32(Kind kind) {
  return kind == Kind::kS8x4 || kind == Kind::kS16x2;
}

inline constexpr int64_t kPanelCols = 16;
inline constexpr int64_t kPanelBytes = 64;  // one step of a panel: 16 lanes
inline constexpr int64_t kMaxPanels = 2;    // panels a tile multiplies at once

// a: (rows, depth) and how it is read.
struct Left {
  const void* data = nullptr;
  Element type = Element::kFloat32;
  int64_t stride = 0;                  // elements from one row to the next
  bool transposed = false;             // data is (depth, rows) float32; `stride` between its rows
  const float* depth_scale = nullptr;  // (depth): multiplies the columns of a
  Dropout dropout;                     // of a[row, k]
};

// b: (depth, cols) and how it is read.
struct Right {
  enum class Layout {
    kInt8Forward,   // packed int8 weights; depth = in_features, cols = out_features
    kInt8Backward,  // the same weights; depth = out_features, cols = in_features
    kRows,          // data is (depth, cols)
    kColumns        // data is (cols, depth)
  };
  Layout layout = Layout::kRows;
  const void* data = nullptr;
  Element type = Element::kFloat32;
  int64_t stride = 0;            // elements from one row of `data` to the next
  int64_t panel_steps = 0;       // packed weights: ceil(in_features / 4)
  const float* scale = nullptr;  // packed weights, per group: (out_features, groups) to multiply in
  int64_t groups = 1;
  int64_t group_size = 0;
  Dropout dropout;  // of b[k, col], for x as the right operand
};

// What happens to the finished sums:
//   c[m, n] = sums · row_scale[m] · col_scale[n] + bias[n] + keep(low_left · low_right)[m, n]
struct Epilogue {
  void* c = nullptr;
  Element type = Element::kFloat32;  // float32 or bfloat16
  int64_t stride = 0;                // elements from one row of c to the next
  const float* row_scale = nullptr;  // (rows)
  const float* col_scale = nullptr;  // (cols)
  const float* bias = nullptr;       // (cols)
  const float* low_left = nullptr;   // (rows, rank), row-major
  const float* low_right = nullptr;  // (rank, cols), row-major
  int64_t rank = 0;
  Dropout dropout;  // of the low-rank part only
};

struct Gemm {
  Left left;
  Right right;
  Epilogue epilogue;
  int64_t rows = 0;
  int64_t depth = 0;
  int64_t cols = 0;
  Kind kind = Kind::kF32;
  Kind low_kind = Kind::kF32;  // of the low-rank product: kF32 or kBf16x2
};

// The part of c that one task computes.
struct Block {
  int64_t row, rows;
  int64_t col, cols;
};

// A row of the packed a holds at most this much of the depth; what is deeper comes in slices.
inline constexpr int64_t kSliceBytes = 2048;
// With a power-of-two distance all rows would share a few sets of the L1 cache.
inline constexpr int64_t kRowPad = 64;
inline constexpr int64_t kMaxRowBytes = kSliceBytes + kRowPad;
// The packed a of a block stays in an L2 cache of 1 MB while the panels of b pass through. A panel
// is made once for all rows of a block, which costs about as much as ten rows of arithmetic.
inline constexpr int64_t kMaxLeftBytes = 480 * 1024;
inline constexpr int64_t kMaxRows = 448;
// Columns of a block whose depth takes several slices; its sums wait in memory meanwhile.
inline constexpr int64_t kMaxSlicedCols = 256;
inline constexpr int64_t kMaxCols = 4096;
inline constexpr int64_t kLowSteps = 16;

// Memory of one task; each part is 64-byte aligned. Block rows are rounded up to whole tiles, block
// columns to kMaxPanels panels, the rank to kLowSteps lanes.
struct Scratch {
  uint8_t* left;        // (block rows, row_bytes)
  int64_t row_bytes;
  int32_t* correction;  // (block rows)
  uint8_t* right;       // kMaxPanels panels of a slice
  uint8_t* sums;        // (block rows, block columns) int32 or float32; one slice: (block rows, 32)
  uint8_t* low_left;    // (block rows, rank)
  uint8_t* low_right;   // panels of the block's columns, rank deep
};

// One instruction set's code. `compute` writes one block of c.
struct GemmKernel {
  int64_t tile_rows;
  void (*compute)(const Gemm& gemm, const Block& block, const Scratch& scratch);
  int64_t max_left_bytes = kMaxLeftBytes;    // of the packed a of a block
  int64_t max_sliced_cols = kMaxSlicedCols;  // of a block whose depth takes several slices
};

// Rows of numbers to quantize to int8, times col_scale (features) if that is given; ftrt/linear.h
// has the rule.
struct QuantizeRows {
  const void* x;
  Element type;
  int64_t stride;
  int64_t features;
  const float* col_scale;
  const int64_t* outliers;
  int64_t outlier_count;
  bool divides;  // by the scale, as weights are; else multiplies by its reciprocal
  int8_t* q;
  float* scale;
};

// Multiplies in registers; returns the number of operations. See ftrt/ceiling.h.
using CeilingLoop = int64_t (*)(int64_t iterations);

using QuantizeRowsFunction = void (*)(const QuantizeRows& task, int64_t begin, int64_t end);

// What an instruction set offers; a null pointer: nothing of its own for that kind.
struct KernelSet {
  const GemmKernel* s8;    // int8 by int8, whatever its lanes hold
  Kind s8_kind;            // kS8x4, kS16x2 or kF32
  const GemmKernel* bf16;  // bfloat16 by bfloat16
  const GemmKernel* f32;
  QuantizeRowsFunction quantize_rows;
  CeilingLoop s8_ceiling;  // of the instructions of s8, bf16 and f32
  CeilingLoop bf16_ceiling;
  CeilingLoop f32_ceiling;
};

extern const KernelSet kPortableKernels;
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
extern const KernelSet kAvx512VnniKernels;
extern const KernelSet kAvx512Bf16Kernels;
extern const KernelSet kAmxKernels;

}  // namespace ftrt::cpu
