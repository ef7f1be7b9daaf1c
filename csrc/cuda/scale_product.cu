// The epilogue of w8a8_gemm behind an int32 product that a library has left in global memory:
// scales, low-rank part and bias in one pass over it, see epilogue.cuh. Memory-bound: 4 bytes are
// read and sizeof(Element) written for each result.
//
// Grid (⌈rows / 64⌉, ⌈columns / 128⌉), 256 threads, no shared memory. Each warp has 16 rows by 64
// columns; a thread reads and writes 4 neighbours of a row at once.
#include "epilogue.cuh"
#include "ptx.cuh"

namespace ftrt {

constexpr int kColumnTiles = 8;
constexpr int kGroup = 2;
using Tile = WarpTile<FTRT_ELEMENT, 1, kColumnTiles, kGroup, FTRT_DROPOUT == 1>;

// Reads what `tile` has of product (rows, stride) into the places where mma would have left it.
__device__ inline void load_product(typename Tile::Fragments& c, const Tile& tile,
                                    const int* product, int64 stride, int rows, int columns) {
  const uint64 place = reinterpret_cast<uint64>(product) | stride * sizeof(int);
  const bool is_aligned = place % 16 == 0;
#pragma unroll
  for (int group = 0; group < Tile::kGroups; ++group) {
    const int column = tile.first_column(group), count = columns - column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool is_row = tile.row(0, half) < rows;
      const int* source = product + tile.row(0, half) * stride + column;
      int4 values = {0, 0, 0, 0};
      if (is_row && is_aligned && count >= 4) {
        values = *reinterpret_cast<const int4*>(source);
      } else if (is_row) {
        if (count > 0) values.x = source[0];
        if (count > 1) values.y = source[1];
        if (count > 2) values.z = source[2];
        if (count > 3) values.w = source[3];
      }
      // neighbour k is column k / kGroup of tile k % kGroup
      c[0][kGroup * group][2 * half] = static_cast<float>(values.x);
      c[0][kGroup * group + 1][2 * half] = static_cast<float>(values.y);
      c[0][kGroup * group][2 * half + 1] = static_cast<float>(values.z);
      c[0][kGroup * group + 1][2 * half + 1] = static_cast<float>(values.w);
    }
  }
}

}  // namespace ftrt

extern "C" __global__ void __launch_bounds__(256)
    scale_product(const int* product,  // (rows, product_stride)
                  ftrt::int64 product_stride, int rows, int columns,
                  int first_row,           // of the whole, where this is some rows of it
                  const float* row_scale,  // from here on as in epilogue.cuh
                  const float* column_scale, const float* bias,
                  const ftrt::FTRT_ELEMENT* left, ftrt::int64 left_stride,
                  const ftrt::FTRT_ELEMENT* right, ftrt::int64 right_stride, int outlier_depth,
                  int rank_depth, const ftrt::int64* seed, ftrt::uint32 threshold,
                  float keep_factor, ftrt::FTRT_ELEMENT* y, ftrt::int64 y_stride) {
  using namespace ftrt;
  const Epilogue<FTRT_ELEMENT> epilogue = {
      rows,  columns,      row_scale,     column_scale, bias, left,      left_stride,
      right, right_stride, outlier_depth, rank_depth,   seed, threshold, keep_factor,
      first_row, y,        y_stride};
  const int warp = ptx::thread_index() / 32;
  const Tile tile(epilogue, ptx::block_index_x() * 64 + warp / 2 * 16,
                  ptx::block_index_y() * 128 + warp % 2 * 64);
  typename Tile::Fragments c;
  load_product(c, tile, product, product_stride, rows, columns);
  tile.finish(c);
}
