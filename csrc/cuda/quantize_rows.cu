// v = front(x) · column_scale as int8 with one scale a row, by row_scale.cuh; outlier columns are 0
// and do not count. FTRT_FRONT:
//
//   none      front(x) = x
//   rms_norm  x / sqrt(mean(x²) + epsilon), rounded, times norm_weight, rounded, as LlamaRMSNorm
//   swiglu    silu(x) · x2, rounded once
//
// x, x2, norm_weight and what front gives are FTRT_ELEMENT, sums float32. Nothing else depends on
// how the threads share a row, but the sum of squares does: it has a fixed order for given
// features.
//
// Grid: a row that a warp's registers hold (3 KB) is a warp's, and ⌈rows / 4⌉ blocks; else a row is
// a block's. 128 threads. Shared memory: 32 bytes, and with outliers 4 · ⌈features / 32⌉ more.
//
// A row is read once, into 6 chunks of 16 bytes a thread, 12 KB or 6144 halves for a block; more
// would not fit the registers of every architecture. The rest of a longer row is read again, from
// L1 or L2. Bytes on their way, for rows of 8 KB: 40 KB a multiprocessor with 5 blocks, 32 KB with
// 4; 4.3 TB/s at 800 ns are 26 KB on each of 132.
#include "row_scale.cuh"

namespace ftrt {

using Element = FTRT_ELEMENT;

enum class Front { none, rms_norm, swiglu };
constexpr Front kFront = Front::FTRT_FRONT;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kHeld = 6;
// On a multiprocessor, as the registers of each front allow without spilling.
constexpr int kBlocks = kFront == Front::none ? 5 : 4;
constexpr int kCount = kPerChunk<Element>;

// The threads that share a row: thread `first` of them takes chunks first, first + step, ...
struct Team {
  int first;
  int step;
};

struct Row {
  const Element* x;
  const Element* x2;
  const Element* norm_weight;
  const float* column_scale;
  int8* q;
  Element* normalized;  // or null
  uint32 outliers;      // bits in shared memory
  bool has_outliers;
  int features;
  float norm;  // 1 / sqrt(mean(x²) + epsilon)
  bool reads_aligned;
  bool scales_aligned;
  bool q_aligned;
  bool normalized_aligned;
};

__device__ inline uint4 load(const Row& row, int k) {
  return load_chunk(row.x + k, row.features - k, row.reads_aligned);
}

// front(x) of a chunk, by the values that `narrow` lets through.
__device__ inline uint4 apply_front(const Row& row, int k, const uint4& x) {
  if constexpr (kFront == Front::none) return x;
  const int left = row.features - k;
  float values[kCount];
  widen_chunk(x, values, Element{});
  float other[kCount];
  if constexpr (kFront == Front::rms_norm) {
    widen_chunk(load_chunk(row.norm_weight + k, left, row.scales_aligned), other, Element{});
  } else {
    widen_chunk(load_chunk(row.x2 + k, left, row.reads_aligned), other, Element{});
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kFront == Front::rms_norm) {
      values[i] = widen(narrow(values[i] * row.norm, Element{})) * other[i];
    } else {
      values[i] = values[i] / (1.0f + ptx::exponential(-values[i])) * other[i];
    }
  }
  return narrow_chunk(values, Element{});
}

// What a chunk of x gives before quantization: writes `normalized`, zeroes outliers. No column at
// or behind `features` is looked at, and the chunk is zero there.
__device__ inline uint4 prepare(const Row& row, int k, const uint4& x) {
  const uint4 chunk = apply_front(row, k, x);
  if (row.normalized != nullptr) {
    store_chunk(row.normalized + k, chunk, row.features - k, row.normalized_aligned);
  }
  if (!row.has_outliers) return chunk;
  return without(chunk, outlier_bits(row.outliers, k), Element{});
}

__device__ inline void scaled(const Row& row, int k, const uint4& chunk, float (&values)[kCount]) {
  widen_chunk(chunk, values, Element{});
  if (row.column_scale == nullptr) return;
  float scales[kCount];
  load_floats(row.column_scale + k, row.features - k, row.scales_aligned, scales);
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] *= scales[i];
}

__device__ inline void quantize(const Row& row, int k, const uint4& chunk, const RowScale& scale) {
  float values[kCount];
  scaled(row, k, chunk, values);
  store_quantized(row.q + k, values, scale, row.features - k, row.q_aligned);
}

__device__ inline float sum_of_squares(const uint4& chunk) {
  float values[kCount];
  widen_chunk(chunk, values, Element{});
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum += values[i] * values[i];
  return sum;
}

// The sum over the threads of a row; 16 bytes from `slots` on are written once in a kernel.
__device__ inline float team_sum(float sum, const Team& team, uint32 slots) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += ptx::exchange(sum, mask);
  if (team.step == 32) return sum;
  const uint32 thread = ptx::thread_index();
  if (thread % 32 == 0) ptx::store_shared_f32(slots + thread / 32 * 4, sum);
  ptx::barrier();
  sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += ptx::load_shared_f32(slots + 4 * warp);
  return sum;
}

__device__ inline uint32 team_maximum(uint32 most, const Team& team, uint32 slots) {
  most = warp_maximum(most);
  if (team.step == 32) return most;
  const uint32 thread = ptx::thread_index();
  if (thread % 32 == 0) ptx::store_shared_32(slots + thread / 32 * 4, most);
  ptx::barrier();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    const uint32 other = ptx::load_shared_32(slots + 4 * warp);
    most = other > most ? other : most;
  }
  return most;
}

// Chunk j of a thread starts at column (first + j · step) · kCount; those from kHeld on are read
// anew each time.
__device__ inline void quantize_row(Row& row, const Team& team, float epsilon, uint32 slots,
                                    float* scale_out) {
  const int step = team.step * kCount;
  const int start = team.first * kCount;
  const int rest = start + kHeld * step;
  uint4 held[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) held[j] = load(row, start + j * step);
  if constexpr (kFront == Front::rms_norm) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) sum += sum_of_squares(held[j]);
    for (int k = rest; k < row.features; k += step) sum += sum_of_squares(load(row, k));
    const float mean = team_sum(sum, team, slots) / static_cast<float>(row.features);
    row.norm = 1.0f / ptx::square_root(mean + epsilon);
  }
  uint32 most = 0;
  float values[kCount];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int k = start + j * step;
    if (k >= row.features) continue;
    held[j] = prepare(row, k, held[j]);
    scaled(row, k, held[j], values);
    most = larger(most, values);
  }
  for (int k = rest; k < row.features; k += step) {
    scaled(row, k, prepare(row, k, load(row, k)), values);
    most = larger(most, values);
  }
  const RowScale scale = row_scale(team_maximum(most, team, slots + 16));
  if (team.first == 0) *scale_out = scale.scale;
  row.normalized = nullptr;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int k = start + j * step;
    if (k < row.features) quantize(row, k, held[j], scale);
  }
  for (int k = rest; k < row.features; k += step) {
    quantize(row, k, prepare(row, k, load(row, k)), scale);
  }
}

}  // namespace ftrt

// x: (rows, features), row m at x + m · x_stride. x2: as x, of swiglu. norm_weight: (features), of
// rms_norm. column_scale: (features) or null. outliers: (outlier_count) sorted columns, or null.
// q: (rows, features), written, row m at q + m · q_stride. scale: (rows), written. normalized:
// (rows, features) contiguous, gets front(x) with outliers; or null.
extern "C" __global__ void __launch_bounds__(128, ftrt::kBlocks)
    quantize_rows(const ftrt::FTRT_ELEMENT* x, ftrt::int64 x_stride, const ftrt::FTRT_ELEMENT* x2,
                  const ftrt::FTRT_ELEMENT* norm_weight, float epsilon, const float* column_scale,
                  const ftrt::int64* outliers, int outlier_count, int rows, int features,
                  ftrt::int8* q, ftrt::int64 q_stride, float* scale,
                  ftrt::FTRT_ELEMENT* normalized) {
  using namespace ftrt;
  const int thread = static_cast<int>(ptx::thread_index());
  const uint32 shared = ptx::shared_base();
  const bool has_outliers = outliers != nullptr && outlier_count > 0;
  if (has_outliers) build_outlier_mask(shared + 32, features, outliers, outlier_count, kThreads);
  const bool is_short = features <= 32 * kHeld * kCount;
  const Team team = is_short ? Team{thread % 32, 32} : Team{thread, kThreads};
  const int64 block = ptx::block_index_x();
  const int64 m = is_short ? block * kWarps + thread / 32 : block;
  if (m >= rows) return;

  Row row;
  row.x = x + m * x_stride;
  row.x2 = kFront == Front::swiglu ? x2 + m * x_stride : nullptr;
  row.norm_weight = norm_weight;
  row.column_scale = column_scale;
  row.q = q + m * q_stride;
  row.normalized = normalized == nullptr ? nullptr : normalized + m * features;
  row.outliers = shared + 32;
  row.has_outliers = has_outliers;
  row.features = features;
  row.norm = 0.0f;
  row.reads_aligned = is_aligned(x, x_stride, 16) && is_aligned(row.x2, 0, 16);
  row.scales_aligned = is_aligned(column_scale, 0, 16) && is_aligned(norm_weight, 0, 16);
  row.q_aligned = is_aligned(q, q_stride, kCount);
  row.normalized_aligned = is_aligned(row.normalized, 0, 16);
  quantize_row(row, team, epsilon, shared, scale + m);
}
