// The product of quantize_project.cu: rows of x in shared memory, a chunk of features at a time,
// and the fragments of mma.m16n8k16. FTRT_ELEMENT is float16 or bfloat16.
//
// Chunks in shared memory: 16 bytes u of row r lie at r · 512 + 16 · (u ^ 4 (r & 1)), so that the 4
// neighbours of two rows that 8 lanes read together fill all banks.
#pragma once

#include "row_scale.cuh"

namespace ftrt {

using Half = FTRT_ELEMENT;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 16;
constexpr int kChunk = 256;  // features
constexpr int kStages = 4;
constexpr int kRowBytes = 2 * kChunk;
constexpr int kChunkBytes = kRows * kRowBytes;
constexpr int kWarpRows = kRows / kWarps;  // that a warp quantizes
constexpr int kSlab = 64;                  // ranks at a time, for which there are registers

static_assert(kWarps * kRows * kSlab * 4 <= kStages * kChunkBytes, "partial sums fit the ring");
static_assert(kChunk == 32 * 8 && kWarps * 32 == kChunk, "a lane's 8 elements");

struct Problem {
  const Half* x;  // of the block's first row
  int64 x_stride;
  bool x_aligned;
  const float* column_scale;
  bool scale_aligned;
  bool has_outliers;
  int rows;  // from the block's first one on, at most kRows
  int features;
  int chunks;
  int cached;  // chunks
  const Half* a;
  int64 a_stride;
  bool a_aligned;
  int rank;
  Dropout dropout;
  int64 first_row;
  uint32 shared;
  uint32 mask;  // of outliers, in shared memory
};

// Where what a block computes goes.
struct Output {
  float* hidden;  // of the block's first row, as the next
  int64 hidden_stride;
  Half* left;
  int64 left_stride;
  int left_first;  // column of rank 0: the outliers, padded
  float keep_factor;
  float left_scaling;
};

__device__ inline uint32 chunk_address(const Problem& p, int chunk) {
  const int slot = chunk < p.cached ? chunk : p.cached + (chunk - p.cached) % kStages;
  return p.shared + slot * kChunkBytes;
}

__device__ inline uint32 unit_address(uint32 chunk, int row, int unit) {
  return chunk + row * kRowBytes + ((unit ^ ((row & 1) << 2)) << 4);
}

// Brings a chunk into its place; rows and features that do not exist are zeros.
__device__ inline void fetch(const Problem& p, int chunk) {
  const uint32 address = chunk_address(p, chunk);
#pragma unroll
  for (int i = 0; i < kChunkBytes / 16 / kThreads; ++i) {
    const int id = static_cast<int>(ptx::thread_index()) + i * kThreads;
    const int row = id / 32, unit = id % 32, k = chunk * kChunk + 8 * unit;
    const int count = row < p.rows ? p.features - k : 0;
    const uint32 to = unit_address(address, row, unit);
    const Half* from = p.x + row * p.x_stride + k;
    if (p.x_aligned) {
      const int bytes = count <= 0 ? 0 : count >= 8 ? 16 : 2 * count;
      ptx::copy_async_16(to, bytes > 0 ? from : p.x, bytes);
    } else {
      ptx::store_shared_128(to, load_chunk(from, count, false));
    }
  }
}

// 8 neighbours of a row with the dropped ones zeroed; k is the first one's column.
__device__ inline uint4 drop(const Problem& p, const uint4& x, uint32 row_key, int k) {
  if (p.dropout.threshold == 0) return x;
  uint32 dropped = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    dropped |= static_cast<uint32>(!is_kept(p.dropout, row_key, k + i)) << i;
  }
  return without(x, dropped, Half{});
}

// What a lane needs of kCount tiles of 8 ranks from `first` on: its features from k on.
template <int kCount>
__device__ inline void load_factor(const Problem& p, int first, int k, uint4 (&a)[kCount]) {
  const int g = static_cast<int>(ptx::thread_index()) % 32 / 4;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int rank = first + 8 * i + g;
    const int count = rank < p.rank ? p.features - k : 0;
    a[i] = load_chunk(p.a + rank * p.a_stride + k, count, p.a_aligned);
  }
}

// A warp's share of the product: 32 features of a chunk, two steps of mma.m16n8k16. Both operands
// permute the features alike, which no sum notices: lane t of four has features 8 t to 8 t + 7, the
// first four of them in step 0. So a lane loads 16 bytes at once of either.
struct Fragments {
  uint4 steps[2];
};

__device__ inline Fragments load_fragments(const Problem& p, int chunk, int unit,
                                           const uint32 (&row_keys)[2]) {
  const int g = static_cast<int>(ptx::thread_index()) % 32 / 4;
  const uint32 address = chunk_address(p, chunk);
  const int k = chunk * kChunk + 8 * unit;
  const uint4 top = drop(p, ptx::load_shared_128(unit_address(address, g, unit)), row_keys[0], k);
  const uint4 bottom =
      drop(p, ptx::load_shared_128(unit_address(address, g + 8, unit)), row_keys[1], k);
  return {{{top.x, bottom.x, top.y, bottom.y}, {top.z, bottom.z, top.w, bottom.w}}};
}

template <int kCount, int kTiles>
__device__ inline void multiply_tiles(const Fragments& x, const uint4 (&a)[kCount], int first,
                                      float (&sums)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    ptx::multiply(sums[first + i], x.steps[0], a[i].x, a[i].y, Half{});
    ptx::multiply(sums[first + i], x.steps[1], a[i].z, a[i].w, Half{});
  }
}

}  // namespace ftrt
