// From one read of x: v = x · column_scale as int8 with one scale a row, as quantize_rows, and the
// low-rank branch h = drop(x) aᵀ. FTRT_ELEMENT is float16 or bfloat16; h is summed in float32 in an
// order that depends on features and rank alone.
//
// Grid ⌈rows / 16⌉, 256 threads. Shared memory: (cached_features / 256 + 4) · 8192 bytes, and with
// outliers 4 · ⌈features / 32⌉ more.
//
// x comes in chunks of 16 rows by 256 features, 8 KB, three of them on their way (cp.async where
// rows are multiples of 16 bytes, else plain loads), so 48 KB with two blocks on a multiprocessor.
// Each warp multiplies 32 features of a chunk and looks for the maxima of two rows. Quantization
// needs the maxima of whole rows and passes over x again: over the first cached_features in shared
// memory, over the rest through L2. A block that quantizes does not read from memory; two on a
// multiprocessor keep it busy, which is why not all of 4096 features stay (128 KB).
//
// Each block reads all of a, rank / 16 times as many bytes from L2 as of x from memory.
#include "project_chunks.cuh"

namespace ftrt {

// v of a lane's 8 columns of a row from k on, 0 for outliers.
__device__ inline void scaled(const Problem& p, const uint4& x, const float (&scales)[8],
                              uint32 outliers, float (&values)[8]) {
  widen_chunk(without(x, outliers, Half{}), values, Half{});
  if (p.column_scale == nullptr) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] *= scales[i];
}

__device__ inline void load_scales(const Problem& p, int k, float (&scales)[8]) {
  if (p.column_scale == nullptr) return;
  load_floats(p.column_scale + k, p.features - k, p.scale_aligned, scales);
}

__device__ inline uint32 lane_outliers(const Problem& p, int k) {
  return p.has_outliers && k < p.features ? outlier_bits(p.mask, k) : 0;
}

// Streams x through shared memory: the product with ranks from `first_rank` on, and, where
// `quantizes`, max |v| of the warp's rows.
template <int kTiles>
__device__ inline void stream(const Problem& p, int first_rank, bool quantizes,
                              float (&sums)[kTiles][4], uint32 (&most)[kWarpRows]) {
  const int thread = static_cast<int>(ptx::thread_index());
  const int warp = thread / 32, lane = thread % 32, g = lane / 4;
  // Tiles of a that are loaded while the chunk is awaited; more would not fit the registers.
  constexpr int kEarly = kTiles <= 4 ? kTiles : 2;
  const uint32 row_keys[2] = {
      dropout_row_key(p.dropout, static_cast<uint32>(p.first_row + g)),
      dropout_row_key(p.dropout, static_cast<uint32>(p.first_row + g + 8))};
  // What stayed from the ranks before is not fetched again.
  const int present = first_rank > 0 ? p.cached : 0;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < p.chunks && i >= present) fetch(p, i);
    ptx::commit_copies();
  }
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int unit = warp * 4 + lane % 4;
    const int k = chunk * kChunk + 8 * unit;
    uint4 a[kEarly];
    load_factor(p, first_rank, k, a);
    ptx::wait_copies<kStages - 2>();
    // The chunk is there for all, and all have left the place that the next one to come takes.
    ptx::barrier();
    const int next = chunk + kStages - 1;
    if (next < p.chunks && next >= present) fetch(p, next);
    ptx::commit_copies();
    const Fragments x = load_fragments(p, chunk, unit, row_keys);
    multiply_tiles(x, a, 0, sums);
#pragma unroll
    for (int i = kEarly; i < kTiles; i += kEarly) {
      load_factor(p, first_rank + 8 * i, k, a);
      multiply_tiles(x, a, i, sums);
    }
    if (!quantizes) continue;
    float scales[8];
    load_scales(p, chunk * kChunk + 8 * lane, scales);
    const uint32 outliers = lane_outliers(p, chunk * kChunk + 8 * lane);
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      const uint32 unit = unit_address(chunk_address(p, chunk), warp * kWarpRows + i, lane);
      float values[8];
      scaled(p, ptx::load_shared_128(unit), scales, outliers, values);
      most[i] = larger(most[i], values);
    }
  }
}

// Adds the warps' sums, in their order, and writes h.
template <int kTiles>
__device__ inline void write_hidden(const Problem& p, const Output& out, int first_rank,
                                    const float (&sums)[kTiles][4]) {
  const int thread = static_cast<int>(ptx::thread_index());
  const uint32 ring = p.shared + p.cached * kChunkBytes;
  ptx::barrier();
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const uint4 quad = {ptx::float_bits(sums[i][0]), ptx::float_bits(sums[i][1]),
                        ptx::float_bits(sums[i][2]), ptx::float_bits(sums[i][3])};
    ptx::store_shared_128(ring + ((thread / 32 * kTiles + i) * 32 + thread % 32) * 16, quad);
  }
  ptx::barrier();
  if (thread < kTiles * 32) {
    float total[4] = {};
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const uint4 quad = ptx::load_shared_128(ring + (warp * kTiles * 32 + thread) * 16);
      total[0] += ptx::float_of_bits(quad.x);
      total[1] += ptx::float_of_bits(quad.y);
      total[2] += ptx::float_of_bits(quad.z);
      total[3] += ptx::float_of_bits(quad.w);
    }
    const int padded = (p.rank + 15) / 16 * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = thread % 32 / 4 + i / 2 * 8;
      const int rank = first_rank + thread / 32 * 8 + thread % 4 * 2 + i % 2;
      if (row >= p.rows || rank >= padded) continue;
      const float h = rank < p.rank ? total[i] * out.keep_factor : 0.0f;
      if (rank < p.rank) out.hidden[row * out.hidden_stride + rank] = h;
      if (out.left != nullptr) {
        out.left[row * out.left_stride + out.left_first + rank] =
            narrow(h * out.left_scaling, Half{});
      }
    }
  }
  // The ring may be filled again.
  ptx::barrier();
}

template <int kTiles>
__device__ inline void project(const Problem& p, const Output& out, int first_rank, bool quantizes,
                               uint32 (&most)[kWarpRows]) {
  float sums[kTiles][4] = {};
  stream(p, first_rank, quantizes, sums, most);
  write_hidden(p, out, first_rank, sums);
}

// x at outliers, as it is: behind h in `hidden`, in front of it in `left`, there padded with zeros.
__device__ inline void write_outliers(const Problem& p, const Output& out, const int64* outliers,
                                      int count) {
  const int padded = out.left_first;
  for (int id = static_cast<int>(ptx::thread_index()); id < p.rows * padded; id += kThreads) {
    const int row = id / padded, i = id % padded;
    Half value = {0};
    if (i < count) {
      value = p.x[row * p.x_stride + outliers[i]];
      out.hidden[row * out.hidden_stride + p.rank + i] = widen(value);
    }
    if (out.left != nullptr) out.left[row * out.left_stride + i] = value;
  }
}

// The second pass over x. A warp quantizes the rows whose maxima it has.
__device__ inline void quantize(const Problem& p, const uint32 (&most)[kWarpRows], int8* q,
                                int64 q_stride, float* scale) {
  const int thread = static_cast<int>(ptx::thread_index());
  const int lane = thread % 32, first = thread / 32 * kWarpRows;
  const bool q_aligned = is_aligned(q, q_stride, 8);
  RowScale row_scales[kWarpRows];
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    row_scales[i] = row_scale(warp_maximum(most[i]));
    if (lane == 0 && first + i < p.rows) scale[first + i] = row_scales[i].scale;
  }
#pragma unroll 2
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int k = chunk * kChunk + 8 * lane;
    float scales[8];
    load_scales(p, k, scales);
    const uint32 outliers = lane_outliers(p, k);
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
      const int row = first + i;
      const int count = row < p.rows ? p.features - k : 0;
      const uint4 x =
          chunk < p.cached
              ? ptx::load_shared_128(unit_address(chunk_address(p, chunk), row, lane))
              : load_chunk(p.x + row * p.x_stride + k, count, p.x_aligned);
      float values[8];
      scaled(p, x, scales, outliers, values);
      store_quantized(q + row * q_stride + k, values, row_scales[i], count, q_aligned);
    }
  }
}

}  // namespace ftrt

// x: (rows, features), row m at x + m · x_stride. column_scale: (features) or null; h knows nothing
// of it. outliers: (outlier_count) sorted columns or null: they are 0 in q and do not count for the
// scale. q: (rows, features), row m at q + m · q_stride, and scale: (rows), written; or both null.
// a: (rank, features), rank 1 to 256. seed: of the dropout, or null for none. hidden: (rows,
// hidden_stride), gets [keep_factor · drop(x) aᵀ | x at outliers]. left: (rows, left_stride) or
// null, gets [x at outliers | left_scaling · h], each padded with zeros to a multiple of 16
// columns. cached_features: a multiple of 256.
extern "C" __global__ void __launch_bounds__(256, 2)
    quantize_project(const ftrt::FTRT_ELEMENT* x, ftrt::int64 x_stride, const float* column_scale,
                     const ftrt::int64* outliers, int outlier_count, int rows, int features,
                     ftrt::int8* q, ftrt::int64 q_stride, float* scale,
                     const ftrt::FTRT_ELEMENT* a, ftrt::int64 a_stride, int rank,
                     const ftrt::int64* seed, ftrt::uint32 threshold, float keep_factor,
                     float* hidden, ftrt::int64 hidden_stride, ftrt::FTRT_ELEMENT* left,
                     ftrt::int64 left_stride, float left_scaling, int cached_features) {
  using namespace ftrt;
  const int64 first_row = static_cast<int64>(ptx::block_index_x()) * kRows;
  Problem p;
  p.x = x + first_row * x_stride;
  p.x_stride = x_stride;
  p.x_aligned = is_aligned(x, x_stride, 16);
  p.column_scale = column_scale;
  p.scale_aligned = is_aligned(column_scale, 0, 16);
  p.has_outliers = outliers != nullptr && outlier_count > 0;
  p.rows = rows - first_row < kRows ? static_cast<int>(rows - first_row) : kRows;
  p.features = features;
  p.chunks = (features + kChunk - 1) / kChunk;
  p.cached = cached_features / kChunk < p.chunks ? cached_features / kChunk : p.chunks;
  p.a = a;
  p.a_stride = a_stride;
  p.a_aligned = is_aligned(a, a_stride, 16);
  p.rank = rank;
  p.dropout.seed = seed == nullptr ? 0 : static_cast<uint64>(*seed);
  p.dropout.threshold = seed == nullptr ? 0 : threshold;
  p.dropout.factor = keep_factor;
  p.first_row = first_row;
  p.shared = ptx::shared_base();
  p.mask = p.shared + (cached_features / kChunk + kStages) * kChunkBytes;

  const int outlier_columns = p.has_outliers ? (outlier_count + 15) / 16 * 16 : 0;
  Output out = {hidden + first_row * hidden_stride,
                hidden_stride,
                left == nullptr ? nullptr : left + first_row * left_stride,
                left_stride,
                outlier_columns,
                seed == nullptr ? 1.0f : keep_factor,
                left_scaling};
  const bool quantizes = q != nullptr;
  if (p.has_outliers && quantizes) {
    build_outlier_mask(p.mask, features, outliers, outlier_count, kThreads);
  }
  if (p.has_outliers) write_outliers(p, out, outliers, outlier_count);
  uint32 most[kWarpRows] = {};
  for (int first = 0; first < rank; first += kSlab) {
    const bool is_first = quantizes && first == 0;
    if (rank - first <= 16) {
      project<2>(p, out, first, is_first, most);
    } else if (rank - first <= 32) {
      project<4>(p, out, first, is_first, most);
    } else {
      project<8>(p, out, first, is_first, most);
    }
  }
  if (quantizes) quantize(p, most, q + first_row * q_stride, q_stride, scale + first_row);
}
