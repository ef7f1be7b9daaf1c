// The operands of thin_gradient.cu on their way: from global memory into registers, tiles ahead,
// and as FTRT_ELEMENT into shared memory. FTRT_INPUT is the type of x.
#pragma once

#include "elements.cuh"

namespace ftrt {

using Input = FTRT_INPUT;
using Half = FTRT_ELEMENT;

constexpr int kThreads = 256;
constexpr int kColumns = 128;
constexpr int kRows = sizeof(Input) == 1 ? 64 : 32;  // multiplied at a time
constexpr int kHalfRows = kRows / 2;
constexpr int kPerUnit = kPerChunk<Input>;
constexpr int kUnits = kRows * kColumns / kPerUnit / kThreads;  // of 16 bytes, a thread
constexpr int kPitch = 2 * kColumns + 16;                       // bytes
constexpr int kSlab = 32;  // ranks at a time; registers hold no more
// Tiles on their way in registers; those of float32 take twice as many.
constexpr int kAhead = sizeof(Input) == 4 ? 1 : 2;

static_assert(kUnits * kThreads * kPerUnit == kRows * kColumns, "whole tiles");
static_assert(kColumns * kSlab * 4 <= 2 * kRows * kPitch, "sums fit where the tiles were");

struct Problem {
  const float* left;
  int64 left_stride;
  int rank;
  const Input* x;
  int64 x_stride;
  bool x_aligned;
  const float* row_scale;
  int columns;
  int first_column;
  int first_row;
  int end_row;
  float factor;
  Dropout dropout;
  const int64* column_index;
  float* out;  // of the split
  int64 out_rank_stride;
  int64 out_column_stride;
  bool adds;
  uint32 shared;
};

// The 16 bytes of each kUnitRows rows of a tile that are a thread's, from `row` and `column` on.
constexpr int kUnitRows = kThreads * kPerUnit / kColumns;

__device__ inline int unit_row() {
  return static_cast<int>(ptx::thread_index()) / (kColumns / kPerUnit);
}

__device__ inline int unit_column() {
  return static_cast<int>(ptx::thread_index()) % (kColumns / kPerUnit) * kPerUnit;
}

// Walks down a thread's units of x, a tile at a time.
struct InputReader {
  const Input* from;
  int64 stride;
  int rows;   // from here to the split's end
  int count;  // of the columns that exist
  bool is_aligned;

  __device__ explicit InputReader(const Problem& p) {
    const int column = p.first_column + unit_column();
    from = p.x + (p.first_row + static_cast<int64>(unit_row())) * p.x_stride + column;
    stride = p.x_stride;
    rows = p.end_row - p.first_row - unit_row();
    count = p.columns - column;
    is_aligned = p.x_aligned;
  }

  __device__ void load(uint4 (&units)[kUnits]) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      units[i] = load_chunk(from, rows > 0 ? count : 0, is_aligned);
      from += kUnitRows * stride;
      rows -= kUnitRows;
    }
  }
};

__device__ inline uint4 drop(const Problem& p, const uint4& x, int row, int column) {
  if (p.dropout.threshold == 0) return x;
  const uint32 row_key = dropout_row_key(p.dropout, static_cast<uint32>(row));
  uint32 dropped = 0;
#pragma unroll 4
  for (int i = 0; i < kPerUnit; ++i) {
    uint32 c = column + i;
    if (p.column_index != nullptr && column + i < p.columns) {
      c = static_cast<uint32>(p.column_index[column + i]);
    }
    dropped |= static_cast<uint32>(!is_kept(p.dropout, row_key, c)) << i;
  }
  return without(x, dropped, Input{});
}

// Puts a tile, the rows from `row` on, into shared memory as Half.
__device__ inline void store_tile(const Problem& p, int row, uint32 address,
                                  const uint4 (&units)[kUnits]) {
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int unit = unit_row() + i * kUnitRows;
    const uint4 x = drop(p, units[i], row + unit, p.first_column + unit_column());
    const uint32 to = address + unit * kPitch + 2 * unit_column();
    if constexpr (sizeof(Input) == 1) {
      const uint2 a = ptx::widen_int8(x.x, Half{}), b = ptx::widen_int8(x.y, Half{});
      const uint2 c = ptx::widen_int8(x.z, Half{}), d = ptx::widen_int8(x.w, Half{});
      ptx::store_shared_128(to, {a.x, a.y, b.x, b.y});
      ptx::store_shared_128(to + 16, {c.x, c.y, d.x, d.y});
    } else if constexpr (sizeof(Input) == 2) {
      ptx::store_shared_128(to, x);
    } else {
      float values[4];
      widen_chunk(x, values, 0.0f);
      ptx::store_shared_64(to, {ptx::pack_halves(values[0], values[1], Half{}),
                                ptx::pack_halves(values[2], values[3], Half{})});
    }
  }
}

// Walks down the left operand of kTiles times 16 ranks, a tile at a time: a thread has a pair of
// ranks of each kPairRows rows.
template <int kTiles>
struct LeftReader {
  static constexpr int kPairs = kRows * 8 * kTiles / kThreads;
  static constexpr int kPairRows = kThreads / (8 * kTiles);
  static constexpr int kPitch = 32 * kTiles + 16;

  const float* from;
  const float* scale;  // or null
  int64 stride;
  int rows;   // from here to the split's end
  int ranks;  // from the pair's first on
  float values[kPairs][2];

  __device__ LeftReader(const Problem& p, int first_rank) {
    const int rank = first_rank + pair_rank();
    const int64 row = p.first_row + static_cast<int64>(pair_row());
    from = p.left + row * p.left_stride + rank;
    scale = p.row_scale == nullptr ? nullptr : p.row_scale + row;
    stride = p.left_stride;
    rows = p.end_row - p.first_row - pair_row();
    ranks = p.rank - rank;
  }

  static __device__ int pair_row() {
    return static_cast<int>(ptx::thread_index()) / (8 * kTiles);
  }
  static __device__ int pair_rank() {
    return static_cast<int>(ptx::thread_index()) % (8 * kTiles) * 2;
  }

  __device__ void load() {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      values[i][0] = values[i][1] = 0.0f;
      if (rows > 0) {
        const float factor = scale == nullptr ? 1.0f : scale[i * kPairRows];
        if (ranks > 0) values[i][0] = from[0] * factor;
        if (ranks > 1) values[i][1] = from[1] * factor;
      }
      from += kPairRows * stride;
      rows -= kPairRows;
    }
    if (scale != nullptr) scale += kRows;
  }

  __device__ void store(uint32 address) const {
    address += pair_row() * kPitch + 2 * pair_rank();
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      ptx::store_shared_32(address + i * kPairRows * kPitch,
                           ptx::pack_halves(values[i][0], values[i][1], Half{}));
    }
  }
};

}  // namespace ftrt
