// What follows an int8 product, on the fragments that mma.m16n8k32 leaves in a warp's registers:
//
//   y[m, c] = column_scale[c] · (row_scale[m] · product[m, c] + Σ_o left[m, o] · right[c, o])
//             + drop(Σ_r left[m, O + r] · right[c, O + r]) + bias[c]
//
// with o below outlier_depth O and r below rank_depth. The outlier columns of x stand inside of the
// weight's scale, so that `right` holds their int8 weights as they are, which 16-bit floats hold
// exactly; a low-rank update stands outside. Sums are float32, and y is rounded once.
//
// Columns are permuted among the tiles of a group of kGroup tiles: column j of tile i is column
// kGroup · j + i of the group (README.md says why), so a thread has 2 · kGroup neighbours of a row.
#pragma once

#include "ptx.cuh"

namespace ftrt {

template <typename Element>
struct Epilogue {
  int rows;
  int columns;
  const float* row_scale;     // (rows)
  const float* column_scale;  // (columns), or null for 1
  const float* bias;          // (columns), or null
  const Element* left;        // (rows, left_stride), or null where both depths are 0
  int64 left_stride;
  const Element* right;  // (columns, right_stride), or null
  int64 right_stride;
  int outlier_depth;  // multiples of 16; left and right are zero where they are padded
  int rank_depth;
  const int64* seed;  // of the dropout of the low-rank part, by row and column; or null
  uint32 threshold;
  float keep_factor;
  int first_row;  // what the first row counts as, for the dropout
  Element* y;  // (rows, y_stride), written
  int64 y_stride;
};

__device__ inline float rounded(float value, float32) { return value; }

// Two neighbours of a row of left or right as one register; zeros where it is not there.
template <typename Element>
__device__ inline uint32 load_pair(const Element* pair, bool is_there) {
  return is_there ? *reinterpret_cast<const uint32*>(pair) : 0;
}

// Writes kCount neighbours of a row, as few instructions as their alignment allows.
template <int kCount>
__device__ inline void store_row(float* y, const float (&values)[kCount], bool is_aligned,
                                 int count) {
  if (is_aligned && count >= kCount) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = {values[i], values[i + 1], values[i + 2], values[i + 3]};
      *reinterpret_cast<float4*>(y + i) = four;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) y[i] = values[i];
  }
}

template <int kCount, typename Half>
__device__ inline void store_row(Half* y, const float (&values)[kCount], bool is_aligned,
                                 int count) {
  uint32 packed[kCount / 2];
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    packed[i] = ptx::pack_halves(values[2 * i], values[2 * i + 1], Half{});
  }
  if (is_aligned && count >= kCount) {
    if constexpr (kCount == 8) {
      const uint4 all = {packed[0], packed[1], packed[2], packed[3]};
      *reinterpret_cast<uint4*>(y) = all;
    } else {
      static_assert(kCount == 4, "a thread stores 4 or 8 neighbours");
      const uint2 all = {packed[0], packed[1]};
      *reinterpret_cast<uint2*>(y) = all;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) y[i].bits = static_cast<uint16>(packed[i / 2] >> 16 * (i % 2));
  }
}

// The fragments of a warp: kRowTiles x kColumnTiles tiles of 16 x 8, whose first element is
// (row, column) of the whole. c[i][j] is what mma leaves, see ptx::multiply_int8.
// kDrops: whether it can drop elements of the update at all.
template <typename Element, int kRowTiles, int kColumnTiles, int kGroup, bool kDrops>
class WarpTile {
 public:
  using Fragments = float[kRowTiles][kColumnTiles][4];
  static constexpr int kNeighbours = 2 * kGroup;
  static constexpr int kGroups = kColumnTiles / kGroup;
  static_assert(kColumnTiles % kGroup == 0, "groups are whole");
  // Two blocks share the registers of a multiprocessor, and hide each other's waiting: operands are
  // loaded when they are needed, not ahead.
  static constexpr bool kLoadsLate = kRowTiles * kColumnTiles <= 16;

  // row: a multiple of 8; column: a multiple of 8 · kGroup.
  __device__ WarpTile(const Epilogue<Element>& epilogue, int row, int column)
      : e_(epilogue),
        row_(row + static_cast<int>(ptx::thread_index() % 32 / 4)),
        column_(column + kNeighbours * static_cast<int>(ptx::thread_index() % 4)) {}

  // c[i][j][k] is the integer product; y is written.
  __device__ void finish(Fragments& c) const {
    scale_rows(c);
    if constexpr (sizeof(Element) == 2) {
      if (e_.outlier_depth > 0) add_outliers(c);
    }
    scale_columns(c);
    if constexpr (sizeof(Element) == 2) {
      if (e_.rank_depth > 0) add_update(c);
    }
    store(c);
  }

  // Row of the whole that c[i][.][2 · half] and c[i][.][2 · half + 1] belong to.
  __device__ int row(int tile, int half) const { return row_ + 16 * tile + 8 * half; }

  // First of the kNeighbours columns that this thread has of a group.
  __device__ int first_column(int group) const { return column_ + 8 * kGroup * group; }

 private:
  // The lane's first row and column, and nothing else: registers are scarce beside the fragments.
  const Epilogue<Element>& e_;
  int row_;
  int column_;

  __device__ int lane_row() const { return row_ % 8; }
  __device__ int lane_pair() const { return column_ % (8 * kGroup) / kNeighbours; }

  __device__ void scale_rows(Fragments& c) const {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = row(i, half) < e_.rows ? e_.row_scale[row(i, half)] : 0.0f;
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          c[i][j][2 * half] *= scale;
          c[i][j][2 * half + 1] *= scale;
        }
      }
    }
  }

  __device__ void scale_columns(Fragments& c) const {
    if (e_.column_scale == nullptr) return;
    for_each_column([&](int column, int tile, int odd) {
      const float scale = column < e_.columns ? e_.column_scale[column] : 0.0f;
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        c[i][tile][odd] *= scale;
        c[i][tile][2 + odd] *= scale;
      }
    });
  }

  // Calls body(column, tile, odd) for each column that this thread has results of.
  template <typename Body>
  __device__ void for_each_column(const Body& body) const {
#pragma unroll
    for (int tile = 0; tile < kColumnTiles; ++tile) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        body(first_column(tile / kGroup) + kGroup * odd + tile % kGroup, tile, odd);
      }
    }
  }

  // Operand a of 16 columns of left, for 16 rows of which this lane's first is `row`.
  __device__ uint4 left_fragment(int row, int depth) const {
    const int first = depth + 2 * lane_pair();
    const Element* pair = e_.left + row * e_.left_stride + first;
    const Element* below = e_.left + (row + 8) * e_.left_stride + first;
    const bool has_first = row < e_.rows, has_second = row + 8 < e_.rows;
    return {load_pair(pair, has_first), load_pair(below, has_second),
            load_pair(pair + 8, has_first), load_pair(below + 8, has_second)};
  }

  // Calls body(tile, b0, b1) with operand b of 16 columns of right for each tile of columns.
  template <typename Body>
  __device__ void for_each_right(int depth, const Body& body) const {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int column =
          ptx::hold(column_) + 8 * kGroup * group + kGroup * lane_row() - kNeighbours * lane_pair();
      const Element* pair = e_.right + column * e_.right_stride + depth + 2 * lane_pair();
#pragma unroll
      for (int i = 0; i < kGroup; ++i, pair += e_.right_stride) {
        const bool is_there = column + i < e_.columns;
        body(kGroup * group + i, load_pair(pair, is_there), load_pair(pair + 8, is_there));
      }
    }
  }

  __device__ void add_outliers(Fragments& c) const {
    for (int depth = 0; depth < e_.outlier_depth; depth += 16) add_product(c, depth);
  }

  __device__ void add_product(Fragments& c, int depth) const {
    uint32 b0[kColumnTiles], b1[kColumnTiles];
    for_each_right(depth, [&](int tile, uint32 first, uint32 second) {
      b0[tile] = first, b1[tile] = second;
    });
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      const uint4 a = left_fragment(kLoadsLate ? ptx::hold(row(i, 0)) : row(i, 0), depth);
#pragma unroll
      for (int tile = 0; tile < kColumnTiles; ++tile) {
        ptx::multiply(c[i][tile], a, b0[tile], b1[tile], Element{});
      }
    }
  }

  __device__ void add_update(Fragments& c) const {
    for (int depth = e_.outlier_depth; depth < e_.outlier_depth + e_.rank_depth; depth += 16) {
      if constexpr (kDrops) {
        if (e_.threshold > 0) {
          add_dropped_product(c, depth);
          continue;
        }
      }
      add_product(c, depth);
    }
  }

  // As add_product, each element of the product dropped or kept by its place. Held values keep the
  // operands and hashes of other tiles out of the registers.
  __device__ void add_dropped_product(Fragments& c, int depth) const {
    const Dropout dropout = {static_cast<uint64>(*e_.seed), e_.threshold, e_.keep_factor};
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      const int row = ptx::hold(this->row(i, 0));
      const uint4 a = left_fragment(row, depth);
      const uint32 keys[2] = {dropout_row_key(dropout, e_.first_row + row),
                              dropout_row_key(dropout, e_.first_row + row + 8)};
      for_each_right(depth, [&](int tile, uint32 b0, uint32 b1) {
        float product[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        ptx::multiply(product, a, b0, b1, Element{});
        const int column = ptx::hold(first_column(tile / kGroup)) + tile % kGroup;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const bool kept = is_kept(dropout, keys[k / 2], column + kGroup * (k % 2));
          c[i][tile][k] += kept ? dropout.factor * product[k] : 0.0f;
        }
      });
    }
  }

  __device__ void store(const Fragments& c) const {
    const uint64 place = reinterpret_cast<uint64>(e_.y) | e_.y_stride * sizeof(Element);
    const bool is_aligned = place % (kNeighbours * sizeof(Element) < 16 ? 8 : 16) == 0;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int column = first_column(group), count = e_.columns - column;
      float bias[kNeighbours];
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) {
        bias[k] = e_.bias != nullptr && k < count ? e_.bias[column + k] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float values[kNeighbours];
#pragma unroll
          for (int k = 0; k < kNeighbours; ++k) {
            values[k] = c[i][kGroup * group + k % kGroup][2 * half + k / kGroup] + bias[k];
          }
          if (row(i, half) < e_.rows) {
            store_row(e_.y + row(i, half) * e_.y_stride + column, values, is_aligned, count);
          }
        }
      }
    }
  }
};

}  // namespace ftrt
