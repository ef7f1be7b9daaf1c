// The packed int8 weight as rows, dequantized or not:
//
//   FTRT_TRANSPOSE 0: out[n - first, k] = W[n, k] · scale[n, k / (in_features / groups)]
//   FTRT_TRANSPOSE 1: out[k, n - first], the same
//
// for first <= n < first + count and all k; rounded to FTRT_OUTPUT once. With int8 there is no
// scale.
//
// Grid (⌈in_features / 128⌉, ⌈count / 64⌉), with FTRT_TRANSPOSE (⌈in_features / 64⌉, ⌈count /
// 128⌉). 256 threads. Shared memory: 64 · 144 bytes.
//
// A block takes 64 rows of `out` by 128 of its columns: it reads 16 bytes (4 output by 4 input
// features) a thread, turns them where columns are output features, lays out int8 rows in shared
// memory, 16 bytes apart, and writes 16 bytes a thread, whole rows of 128 to 512 bytes a block.
// Nothing depends on anything: 2 loads a thread and 8 blocks of 64 registers or less make
// 64 KB on their way on a multiprocessor.
#include "elements.cuh"

namespace ftrt {

using Output = FTRT_OUTPUT;

constexpr bool kTranspose = FTRT_TRANSPOSE == 1;
constexpr int kThreads = 256;
constexpr int kRows = 64;      // of out
constexpr int kColumns = 128;  // of out
constexpr int kPitch = kColumns + 16;
constexpr int kOutputs = kTranspose ? kColumns : kRows;  // features
constexpr int kInputs = kTranspose ? kRows : kColumns;   // features
constexpr int kCount = kPerChunk<Output>;

struct Problem {
  const int8* packed;
  int64 k_groups;
  const float* scale;
  int groups;
  int group_size;
  int in_features;
  int first;  // output feature
  int count;
  Output* out;
  int64 out_stride;
  bool out_aligned;
  uint32 shared;
};

// 4 x 4 bytes transposed: byte j of word i becomes byte i of word j.
__device__ inline uint4 turn(const uint4& m) {
  const uint32 low01 = ptx::permute_bytes(m.x, m.y, 0x5140);
  const uint32 low23 = ptx::permute_bytes(m.z, m.w, 0x5140);
  const uint32 high01 = ptx::permute_bytes(m.x, m.y, 0x7362);
  const uint32 high23 = ptx::permute_bytes(m.z, m.w, 0x7362);
  return {ptx::permute_bytes(low01, low23, 0x5410), ptx::permute_bytes(low01, low23, 0x7632),
          ptx::permute_bytes(high01, high23, 0x5410), ptx::permute_bytes(high01, high23, 0x7632)};
}

// Brings the block's features into shared memory, zeros where there are none. Neighbouring threads
// read 64 bytes of a k-group, then the next one of the panel: 8 groups, 512 bytes, a warp.
__device__ inline void load_tile(const Problem& p, int n0, int k0) {
  constexpr int kGroups = kInputs / 4;
#pragma unroll
  for (int i = 0; i < kOutputs * kInputs / 16 / kThreads; ++i) {
    const int id = static_cast<int>(ptx::thread_index()) + i * kThreads;
    const int four = id % 4 * 4, group = id / 4 % kGroups, panel = id / 4 / kGroups;
    // within the tile
    const int n = 16 * panel + four, k = 4 * group;
    uint4 words = {};
    if (n0 + n < p.count && k0 + k < p.in_features) {
      const int64 place = static_cast<int64>(p.first + n0) / 16 + panel;
      const int8* from = p.packed + ((place * p.k_groups + k0 / 4 + group) * 16 + four) * 4;
      words = *reinterpret_cast<const uint4*>(from);
      if (kTranspose) words = turn(words);
    }
    const uint32 to = p.shared + (kTranspose ? k * kPitch + n : n * kPitch + k);
    ptx::store_shared_32(to, words.x);
    ptx::store_shared_32(to + kPitch, words.y);
    ptx::store_shared_32(to + 2 * kPitch, words.z);
    ptx::store_shared_32(to + 3 * kPitch, words.w);
  }
}

// `count` neighbours of a row of `out`, at most kCount; n and k are features of the first.
template <typename Float>
__device__ inline uint4 dequantize(const Problem& p, uint32 address, int n, int k, int count,
                                   Float) {
  uint32 words[kCount / 4];
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) words[i] = ptx::load_shared_32(address + 4 * i);
  // One group for most: groups have many features, and a division is slow.
  const int first_group = k / p.group_size;
  const bool is_one = kTranspose || k + kCount <= (first_group + 1) * p.group_size;
  const float* scales = p.scale + static_cast<int64>(n) * p.groups + first_group;
  float values[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0.0f;
    if (i >= count) continue;
    int64 place = kTranspose ? static_cast<int64>(i) * p.groups : 0;
    if (!is_one) place = (k + i) / p.group_size - first_group;
    values[i] = widen(static_cast<int8>(words[i / 4] >> (8 * (i % 4)))) * scales[place];
  }
  return narrow_chunk(values, Float{});
}

__device__ inline uint4 dequantize(const Problem&, uint32 address, int, int, int, int8) {
  return ptx::load_shared_128(address);
}

__device__ inline void write_tile(const Problem& p, int n0, int k0) {
  const int row0 = kTranspose ? k0 : n0, rows = kTranspose ? p.in_features : p.count;
  const int column0 = kTranspose ? n0 : k0, columns = kTranspose ? p.count : p.in_features;
  constexpr int kPerRow = kColumns / kCount;
#pragma unroll
  for (int i = 0; i < kRows * kPerRow / kThreads; ++i) {
    const int id = static_cast<int>(ptx::thread_index()) + i * kThreads;
    const int row = id / kPerRow, column = id % kPerRow * kCount;
    const int count = columns - (column0 + column);
    if (row0 + row >= rows || count <= 0) continue;
    const int n = p.first + n0 + (kTranspose ? column : row);
    const int k = k0 + (kTranspose ? row : column);
    const uint4 chunk = dequantize(p, p.shared + row * kPitch + column, n, k, count, Output{});
    Output* to = p.out + static_cast<int64>(row0 + row) * p.out_stride + column0 + column;
    store_chunk(to, chunk, count, p.out_aligned);
  }
}

}  // namespace ftrt

// packed: (⌈out_features / 16⌉, k_groups, 16, 4) with k_groups = ⌈in_features / 4⌉. scale:
// (out_features, groups), groups divides in_features; null for int8. first: a multiple of 16; first
// + count is at most out_features. out: (count, in_features) or (in_features, count), a row each
// out_stride.
extern "C" __global__ void __launch_bounds__(256)
    unpack(const ftrt::int8* packed, int k_groups, const float* scale, int groups,
           int in_features, int first, int count, ftrt::FTRT_OUTPUT* out,
           ftrt::int64 out_stride) {
  using namespace ftrt;
  Problem p;
  p.packed = packed;
  p.k_groups = k_groups;
  p.scale = scale;
  p.groups = groups;
  p.group_size = in_features / (scale == nullptr ? 1 : groups);
  p.in_features = in_features;
  p.first = first;
  p.count = count;
  p.out = out;
  p.out_stride = out_stride;
  p.out_aligned = is_aligned(out, out_stride, 16);
  p.shared = ptx::shared_base();
  const int k0 = static_cast<int>(ptx::block_index_x()) * kInputs;
  const int n0 = static_cast<int>(ptx::block_index_y()) * kOutputs;
  load_tile(p, n0, k0);
  ptx::barrier();
  write_tile(p, n0, k0);
}
