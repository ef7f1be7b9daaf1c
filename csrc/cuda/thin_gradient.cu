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
// Two tiles of R rows by 128 columns are on their way in registers while one is multiplied: 2 · 8
// KB a block, 32 KB a multiprocessor. Warps are 4 groups of 32 columns by 2 halves of the tile's
// rows, which are added at the end: so the left operand is read from shared memory four times, not
// eight. Rows in shared memory are 16 bytes longer than their elements, so that the 8 rows of a
// matrix of ldmatrix fill all banks; the transposing ldmatrix puts neighbours in m together for
// either operand.
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
