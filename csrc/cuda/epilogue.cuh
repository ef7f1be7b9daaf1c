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

// Two neighbours of a row of left or right as one register; zeros outside.
template <typename Element>
__device__ inline uint32 load_pair(const Element* data, int64 stride, int row, int rows,
                                   int depth) {
  if (row >= rows) return 0;
  return *reinterpret_cast<const uint32*>(data + row * stride + depth);
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

  __device__ WarpTile(const Epilogue<Element>& epilogue, int row, int column)
      : e_(epilogue),
        row_(row + static_cast<int>(ptx::thread_index() % 32 / 4)),
        column_(column),
        lane_row_(static_cast<int>(ptx::thread_index() % 32 / 4)),
        lane_pair_(static_cast<int>(ptx::thread_index() % 4)) {}

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
  __device__ int first_column(int group) const {
    return column_ + 8 * kGroup * group + kNeighbours * lane_pair_;
  }

 private:
  const Epilogue<Element>& e_;
  int row_;
  int column_;
  int lane_row_;
  int lane_pair_;

  // Column of the whole that this lane loads of operand b for a tile.
  __device__ int operand_column(int tile) const {
    return column_ + 8 * kGroup * (tile / kGroup) + kGroup * lane_row_ + tile % kGroup;
  }

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

  // Operand a of 16 columns of left, for one tile of rows.
  __device__ uint4 left_fragment(int tile, int depth) const {
    const int first = depth + 2 * lane_pair_;
    uint4 a;
    a.x = load_pair(e_.left, e_.left_stride, row(tile, 0), e_.rows, first);
    a.y = load_pair(e_.left, e_.left_stride, row(tile, 1), e_.rows, first);
    a.z = load_pair(e_.left, e_.left_stride, row(tile, 0), e_.rows, first + 8);
    a.w = load_pair(e_.left, e_.left_stride, row(tile, 1), e_.rows, first + 8);
    return a;
  }

  // Calls body(tile, b0, b1) with operand b of 16 columns of right for each tile of columns.
  template <typename Body>
  __device__ void for_each_right(int depth, const Body& body) const {
#pragma unroll
    for (int tile = 0; tile < kColumnTiles; ++tile) {
      const int column = operand_column(tile), first = depth + 2 * lane_pair_;
      body(tile, load_pair(e_.right, e_.right_stride, column, e_.columns, first),
           load_pair(e_.right, e_.right_stride, column, e_.columns, first + 8));
    }
  }

  __device__ void add_outliers(Fragments& c) const {
    for (int depth = 0; depth < e_.outlier_depth; depth += 16) add_product(c, depth);
  }

  __device__ void add_product(Fragments& c, int depth) const {
    uint4 a[kRowTiles];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) a[i] = left_fragment(i, depth);
    for_each_right(depth, [&](int tile, uint32 b0, uint32 b1) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) ptx::multiply(c[i][tile], a[i], b0, b1, Element{});
    });
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

  // As add_product, each element of the product dropped or kept by its place.
  __device__ void add_dropped_product(Fragments& c, int depth) const {
    // Tile by tile: unrolled, the hashes of all columns would be kept in registers at once.
#pragma unroll 1
    for (int i = 0; i < kRowTiles; ++i) {
      // Read here, not before the loop, so that it needs no register in what follows.
      const Dropout dropout = {static_cast<uint64>(*e_.seed), e_.threshold, e_.keep_factor};
      const uint4 a = left_fragment(i, depth);
      const uint32 keys[2] = {dropout_row_key(dropout, e_.first_row + row(i, 0)),
                              dropout_row_key(dropout, e_.first_row + row(i, 1))};
      for_each_right(depth, [&](int tile, uint32 b0, uint32 b1) {
        float product[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        ptx::multiply(product, a, b0, b1, Element{});
        const int column = first_column(tile / kGroup) + tile % kGroup;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const bool kept = is_kept(dropout, keys[k / 2], column + kGroup * (k % 2));
          const float kept_product = kept ? dropout.factor * product[k] : 0.0f;
          // c[i] with i known only at run time would put all of c into local memory.
#pragma unroll
          for (int row_tile = 0; row_tile < kRowTiles; ++row_tile) {
            c[row_tile][tile][k] += row_tile == i ? kept_product : 0.0f;
          }
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
