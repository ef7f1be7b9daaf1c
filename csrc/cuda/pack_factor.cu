// A low-rank factor as the operand that other kernels read. With f[c, r] = source[c · column_stride
// + r · rank_stride], both or one of
//
//   right[c]      = [W[c, outliers] | scaling · f[c]], each padded with zeros to a multiple of 16
//   transposed[r] = scaling · f[:, r]
//
// in FTRT_ELEMENT, rounded once; f is FTRT_SOURCE, W the packed int8 weight, whose values 16-bit
// floats hold exactly.
//
// Grid ⌈columns / 32⌉, 256 threads, no shared memory. A block's part of f (32 columns of 16 ranks
// in 2 KB) stays in L1 for the second of the two, whichever of the strides is 1. A factor of rank
// 16 has about 128 KB: the launch takes longer than its traffic.
#include "elements.cuh"

namespace ftrt {

using Source = FTRT_SOURCE;
using Half = FTRT_ELEMENT;

constexpr int kThreads = 256;
constexpr int kColumns = 32;

struct Problem {
  const Source* source;
  int64 column_stride;
  int64 rank_stride;
  int first_column;
  int columns;  // of the block
  int rank;
  float scaling;
  const int8* packed;
  int64 k_groups;
  const int64* outliers;
  int outlier_count;
};

__device__ inline float factor(const Problem& p, int column, int rank) {
  const int64 c = p.first_column + column;
  return widen(p.source[c * p.column_stride + rank * p.rank_stride]) * p.scaling;
}

__device__ inline float weight(const Problem& p, int column, int outlier) {
  const int64 n = p.first_column + column, k = p.outliers[outlier];
  return widen(p.packed[((n / 16 * p.k_groups + k / 4) * 16 + n % 16) * 4 + k % 4]);
}

__device__ inline void write_right(const Problem& p, Half* right, int64 stride) {
  const int outliers = (p.outlier_count + 15) / 16 * 16;
  const int width = outliers + (p.rank + 15) / 16 * 16;
  for (int id = static_cast<int>(ptx::thread_index()); id < p.columns * width; id += kThreads) {
    const int column = id / width, i = id % width;
    float value = 0.0f;
    if (i < p.outlier_count) {
      value = weight(p, column, i);
    } else if (i >= outliers && i - outliers < p.rank) {
      value = factor(p, column, i - outliers);
    }
    right[(p.first_column + static_cast<int64>(column)) * stride + i] = narrow(value, Half{});
  }
}

__device__ inline void write_transposed(const Problem& p, Half* transposed, int64 stride) {
  const int column = static_cast<int>(ptx::thread_index()) % kColumns;
  if (column >= p.columns) return;
  for (int rank = static_cast<int>(ptx::thread_index()) / kColumns; rank < p.rank;
       rank += kThreads / kColumns) {
    transposed[rank * stride + p.first_column + column] =
        narrow(factor(p, column, rank), Half{});
  }
}

}  // namespace ftrt

// source: (columns, rank) by its strides. packed: (⌈columns / 16⌉, k_groups, 16, 4), columns being
// output features, and outliers: (outlier_count) input features; or null, and outlier_count 0.
// right: (columns, right_stride), written up to the padded width; or null. transposed: (rank,
// transposed_stride), the first `columns` of each written; or null.
extern "C" __global__ void __launch_bounds__(256)
    pack_factor(const ftrt::FTRT_SOURCE* source, ftrt::int64 column_stride,
                ftrt::int64 rank_stride, int columns, int rank, float scaling,
                const ftrt::int8* packed, int k_groups, const ftrt::int64* outliers,
                int outlier_count, ftrt::FTRT_ELEMENT* right, ftrt::int64 right_stride,
                ftrt::FTRT_ELEMENT* transposed, ftrt::int64 transposed_stride) {
  using namespace ftrt;
  Problem p;
  p.source = source;
  p.column_stride = column_stride;
  p.rank_stride = rank_stride;
  p.first_column = static_cast<int>(ptx::block_index_x()) * kColumns;
  p.columns = columns - p.first_column < kColumns ? columns - p.first_column : kColumns;
  p.rank = rank;
  p.scaling = scaling;
  p.packed = packed;
  p.k_groups = k_groups;
  p.outliers = outliers;
  p.outlier_count = packed == nullptr || outliers == nullptr ? 0 : outlier_count;
  if (right != nullptr) write_right(p, right, right_stride);
  if (transposed != nullptr) write_transposed(p, transposed, transposed_stride);
}
