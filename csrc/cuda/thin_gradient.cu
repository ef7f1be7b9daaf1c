// A sum over tokens that is thin on one side, the gradients of a and b:
//
//   out[r, c] (+)= factor · Σ_m round(left[m, r] · row_scale[m]) · drop(x[m, c])
//
// x is FTRT_INPUT: int8 or FTRT_ELEMENT (float16 or bfloat16) as they are, or float32, rounded to
// FTRT_ELEMENT, in which products are made; sums are float32.
//
// Grid (⌈columns / 128⌉, splits); split s has rows s · rows_per_split on. 256 threads. Shared
// memory: 2 · R · (272 + 2 · slab + 16) bytes, with tiles of R = 64 rows for int8 and 32 else, and
// a slab of 16 ranks, or of 32 where there are more: these are taken 32 at a time, x again from L2.
//
// split_stride 0: splits add to `out` atomically, in no order. Else split s writes its sums, zeros
// where it has no rows, at out + s · split_stride: in a fixed order, and so will be their sum.
//
// Two tiles of R rows by 128 columns, 8 KB each (one of 16 KB for float32), are on their way in
// registers while one is multiplied: 32 KB a multiprocessor with two blocks. Warps are 4 groups of
// 32 columns by 2 halves of the tile's rows, which are added at the end: so the left operand is
// read from shared memory four times, not eight. Rows in shared memory are 16 bytes longer than
// their elements, so that the 8 rows of a matrix of ldmatrix fill all banks; the transposing
// ldmatrix puts neighbours in m together for either operand.
#include "thin_operands.cuh"

namespace ftrt {

template <int kTiles>
using Sums = float[kTiles][4][4];  // tiles of 16 ranks, tiles of 8 columns

// A warp's share of a tile: 32 columns, half of the rows.
template <int kTiles>
__device__ inline void multiply_tile(uint32 x, uint32 left, Sums<kTiles>& sums) {
  const int thread = static_cast<int>(ptx::thread_index());
  const int lane = thread % 32, column = thread / 32 % 4 * 32, matrix = lane / 8;
  // Unrolled, the two steps of int8 would take more registers than there are.
#pragma unroll 1
  for (int step = 0; step < kHalfRows; step += 16) {
    const int row = thread / 128 * kHalfRows + step + lane % 8;
    uint4 b[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      b[i] = ptx::load_matrices_transposed(x + (row + matrix % 2 * 8) * kPitch +
                                           2 * (column + 16 * i + matrix / 2 * 8));
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 a =
          ptx::load_matrices_transposed(left + (row + matrix / 2 * 8) * LeftReader<kTiles>::kPitch +
                                        2 * (16 * tile + matrix % 2 * 8));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::multiply(sums[tile][2 * i], a, b[i].x, b[i].y, Half{});
        ptx::multiply(sums[tile][2 * i + 1], a, b[i].z, b[i].w, Half{});
      }
    }
  }
}

__device__ inline void write_sum(const Problem& p, float* to, float sum, bool exists) {
  if (!exists) return;
  if (p.adds) {
    ptx::add_global(to, p.factor * sum);
  } else {
    *to = p.factor * sum;
  }
}

// Adds the sums of the second half of the rows to those of the first and writes them.
template <int kTiles>
__device__ inline void write_sums(const Problem& p, int first_rank, const Sums<kTiles>& sums) {
  const int thread = static_cast<int>(ptx::thread_index());
  const int lane = thread % 32;
  const uint32 quads = p.shared + thread % 128 * 16;
  // The tiles in shared memory have been multiplied by all.
  ptx::barrier();
  if (thread >= 128) {
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      const float(&sum)[4] = sums[i / 4][i % 4];
      ptx::store_shared_128(quads + i * 2048, {ptx::float_bits(sum[0]), ptx::float_bits(sum[1]),
                                               ptx::float_bits(sum[2]), ptx::float_bits(sum[3])});
    }
  }
  ptx::barrier();
  if (thread < 128) {
    const int columns = p.columns - (p.first_column + thread / 32 * 32 + lane % 4 * 2);
    const int ranks = p.rank - (first_rank + lane / 4);
    float* to = p.out + static_cast<int64>(p.rank - ranks) * p.out_rank_stride +
                static_cast<int64>(p.columns - columns) * p.out_column_stride;
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      const float(&sum)[4] = sums[i / 4][i % 4];
      const uint4 other = ptx::load_shared_128(quads + i * 2048);
      const bool top = ranks > i / 4 * 16, bottom = ranks > i / 4 * 16 + 8;
      const bool even = columns > i % 4 * 8, odd = columns > i % 4 * 8 + 1;
      float* below = to + 8 * p.out_rank_stride;
      write_sum(p, to, sum[0] + ptx::float_of_bits(other.x), top && even);
      write_sum(p, to + p.out_column_stride, sum[1] + ptx::float_of_bits(other.y), top && odd);
      write_sum(p, below, sum[2] + ptx::float_of_bits(other.z), bottom && even);
      write_sum(p, below + p.out_column_stride, sum[3] + ptx::float_of_bits(other.w),
                bottom && odd);
      to += 8 * p.out_column_stride;
      if (i % 4 == 3) to += 16 * p.out_rank_stride - 32 * p.out_column_stride;
    }
  }
  // Shared memory may be filled again.
  ptx::barrier();
}

// One tile of rows: what was loaded goes to shared memory, and the tile kAhead further is loaded.
template <int kTiles>
__device__ inline void advance(const Problem& p, int tile, uint4 (&units)[kUnits],
                               InputReader& input, LeftReader<kTiles>& left,
                               Sums<kTiles>& sums) {
  constexpr int kLeftBytes = kRows * LeftReader<kTiles>::kPitch;
  const int row = p.first_row + tile * kRows;
  if (row >= p.end_row) return;
  const uint32 x_address = p.shared + tile % 2 * (kRows * kPitch + kLeftBytes);
  const uint32 left_address = x_address + kRows * kPitch;
  store_tile(p, row, x_address, units);
  left.store(left_address);
  // All threads have multiplied the tile before this one's predecessor, whose place it takes.
  ptx::barrier();
  input.load(units);
  left.load();
  multiply_tile<kTiles>(x_address, left_address, sums);
}

template <int kTiles>
__device__ inline void sum_rows(const Problem& p, int first_rank) {
  Sums<kTiles> sums = {};
  uint4 even[kUnits], odd[kUnits];
  InputReader input(p);
  LeftReader<kTiles> left(p, first_rank);
  input.load(even);
  if constexpr (kAhead == 2) input.load(odd);
  left.load();
  const int tiles = (p.end_row - p.first_row + kRows - 1) / kRows;
  for (int tile = 0; tile < tiles; tile += kAhead) {
    advance<kTiles>(p, tile, even, input, left, sums);
    if constexpr (kAhead == 2) advance<kTiles>(p, tile + 1, odd, input, left, sums);
  }
  write_sums<kTiles>(p, first_rank, sums);
}

}  // namespace ftrt

// left: (rows, left_stride) float, its first `rank` columns; rank 1 to 256. x: (rows, columns), row
// m at x + m · x_stride. row_scale: (rows) or null. seed: of the dropout of x, or null for none;
// what is kept counts keep_factor times. column_index: (columns) or null, the column that each of x
// stands for in the dropout. out: [r, c] at r · out_rank_stride + c · out_column_stride.
extern "C" __global__ void __launch_bounds__(256, 2)
    thin_gradient(const float* left, ftrt::int64 left_stride, int rank, const ftrt::FTRT_INPUT* x,
                  ftrt::int64 x_stride, const float* row_scale, int rows, int columns,
                  float factor, const ftrt::int64* seed, ftrt::uint32 threshold,
                  float keep_factor, const ftrt::int64* column_index, float* out,
                  ftrt::int64 out_rank_stride, ftrt::int64 out_column_stride,
                  ftrt::int64 split_stride, int rows_per_split) {
  using namespace ftrt;
  const int64 split = ptx::block_index_y();
  const int64 first_row = split * rows_per_split;
  const int64 end_row = first_row + rows_per_split;
  Problem p;
  p.left = left;
  p.left_stride = left_stride;
  p.rank = rank;
  p.x = x;
  p.x_stride = x_stride;
  p.x_aligned = is_aligned(x, x_stride, 16);
  p.row_scale = row_scale;
  p.columns = columns;
  p.first_column = static_cast<int>(ptx::block_index_x()) * kColumns;
  p.first_row = first_row < rows ? static_cast<int>(first_row) : rows;
  p.end_row = end_row < rows ? static_cast<int>(end_row) : rows;
  p.factor = seed == nullptr ? factor : factor * keep_factor;
  p.dropout.seed = seed == nullptr ? 0 : static_cast<uint64>(*seed);
  p.dropout.threshold = seed == nullptr ? 0 : threshold;
  p.dropout.factor = keep_factor;
  p.column_index = column_index;
  p.out = out + split * split_stride;
  p.out_rank_stride = out_rank_stride;
  p.out_column_stride = out_column_stride;
  p.adds = split_stride == 0;
  p.shared = ptx::shared_base();
  for (int first = 0; first < rank; first += kSlab) {
    if (rank - first <= 16) {
      sum_rows<1>(p, first);
    } else {
      sum_rows<2>(p, first);
    }
  }
}
