// y = scales · (a · W) + low-rank part + bias for int8 a and a packed int8 weight W, either way:
//
//   FTRT_DIRECTION 0, forward:  a is xq (rows, in_features),   y (rows, out_features)
//   FTRT_DIRECTION 1, backward: a is dZq (rows, out_features), y (rows, in_features)
//
// exact in int32 over the depth, then epilogue.cuh, which drops elements of the low-rank part where
// FTRT_DROPOUT is 1 (backward; forward drops x on its way to the low-rank part instead). For sm_80
// and newer: mma.m16n8k32 on tiles of FTRT_TILE_M x FTRT_TILE_N that cp.async brings in FTRT_STAGES
// stages, 64 deep.
//
// Grid (⌈rows / FTRT_TILE_M⌉ · ⌈columns / FTRT_TILE_N⌉), 256 threads, dynamic shared memory
// FTRT_STAGES · 64 · (FTRT_TILE_M + FTRT_TILE_N) bytes. Nothing is specialised on rows.
//
// Shared memory. Rows of a are 64 bytes, and 16-byte chunk c of row r lies at c ^ (r / 2 % 4), so
// that the 8 rows of a matrix of ldmatrix fill all 32 banks. Of the weight, 64 bytes are the 16
// features of a panel by 4 input features; chunk c of k-group k lies at c ^ (k & 2), which does the
// same for the 64-bit loads of the forward pass (lanes 0 to 15: k-groups 0 to 3 by 32 bytes) and
// leaves the 128-bit loads of backward, 128 neighbouring bytes for 8 lanes, as good as they are.
#include "epilogue.cuh"
#include "ptx.cuh"

// Whether two blocks share a multiprocessor, which leaves a thread 128 registers.
#define FTRT_IS_TIGHT (FTRT_TILE_M * FTRT_TILE_N <= (FTRT_DROPOUT ? 8192 : 16384))

namespace ftrt {

constexpr bool kIsBackward = FTRT_DIRECTION == 1;
constexpr bool kDrops = FTRT_DROPOUT == 1;
constexpr int kTileM = FTRT_TILE_M;
constexpr int kTileN = FTRT_TILE_N;
constexpr int kStages = FTRT_STAGES;
constexpr int kDepth = 64;
constexpr int kThreads = 256;
constexpr int kWarpsM = 2;
constexpr int kWarpsN = 4;
constexpr int kRowTiles = kTileM / kWarpsM / 16;
constexpr int kColumnTiles = kTileN / kWarpsN / 8;
constexpr int kGroup = kIsBackward ? 4 : 2;
constexpr bool kIsTight = FTRT_IS_TIGHT;
constexpr int kStageBytes = kDepth * (kTileM + kTileN);
constexpr int kPanel = 16;       // output features
constexpr int kGroupBytes = 64;  // of a k-group of a panel: 16 output by 4 input features
// Of one panel within a stage.
constexpr int kPanelBytes = kIsBackward ? kTileN / 4 * kGroupBytes : kDepth / 4 * kGroupBytes;
// Rows of tiles that are walked together, so that a panel of the weight is reused from L2.
constexpr int kRaster = 8;

static_assert(kWarpsM * kWarpsN * 32 == kThreads, "a warp each");
static_assert(kTileM % (16 * kWarpsM) == 0 && kTileN % (32 * kWarpsN) == 0, "whole tiles");
static_assert(kStages >= 2, "one stage is filled while another is multiplied");

// The 8-bit type: what its products are summed in, and the instruction. e4m3 has the same shape and
// the same places in registers and memory, and sums in float32.
struct Int8Product {
  using Sum = int;
  __device__ static void multiply(Sum (&c)[4], const uint4& a, uint32 b0, uint32 b1) {
    ptx::multiply_int8(c, a, b0, b1);
  }
};

using Bytes = Int8Product;
using Product = Bytes::Sum[kRowTiles][kColumnTiles][4];

// Where a block's operands lie in global memory.
struct Source {
  const int8* a;
  int64 a_stride;
  const int8* packed;
  int k_groups;
  int rows;
  int depth;
  int panels;
  int row;     // of the tile
  int column;  // of the tile
};

// What is missing below 16 bytes is filled with zeros; a source of no bytes is not read.
__device__ inline void copy_chunk(uint32 address, const int8* base, int64 offset, int bytes) {
  bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
  ptx::copy_async_16(address, base + (bytes > 0 ? offset : 0), bytes);
}

__device__ inline void load_rows(const Source& source, uint32 stage, int depth) {
#pragma unroll
  for (int i = 0; i < kTileM * 4 / kThreads; ++i) {
    const int id = ptx::thread_index() + i * kThreads;
    const int row = id / 4, chunk = id % 4, first = depth + 16 * chunk;
    const int64 whole = source.row + row;
    copy_chunk(stage + row * kDepth + ((chunk ^ (row / 2 % 4)) << 4), source.a,
               whole * source.a_stride + first, whole < source.rows ? source.depth - first : 0);
  }
}

__device__ inline void load_weight(const Source& source, uint32 stage, int depth) {
  constexpr int kChunks = kPanelBytes / 16;
  const int first_panel = (kIsBackward ? depth : source.column) / kPanel;
  const int first_group = (kIsBackward ? source.column : depth) / 4;
#pragma unroll
  for (int i = 0; i < kTileN * 4 / kThreads; ++i) {
    const int id = ptx::thread_index() + i * kThreads;
    const int panel = id / kChunks, group = id % kChunks / 4, chunk = id % 4;
    const bool is_there =
        first_panel + panel < source.panels && first_group + group < source.k_groups;
    const int64 whole =
        static_cast<int64>(first_panel + panel) * source.k_groups + first_group + group;
    copy_chunk(stage + panel * kPanelBytes + group * kGroupBytes + ((chunk ^ (group & 2)) << 4),
               source.packed, whole * kGroupBytes + 16 * chunk, is_there ? 16 : 0);
  }
}

// Operand a of a warp: 16 rows by 32 bytes for each tile of rows. `step` is the half of the stage.
__device__ inline void load_a(uint4 (&a)[kRowTiles], uint32 rows, int lane, int step) {
  const int row = lane % 16, chunk = 2 * step + lane / 16;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    a[i] = ptx::load_matrices(rows + (16 * i + row) * kDepth + ((chunk ^ (row / 2 % 4)) << 4));
  }
}

// The 4 bytes of each of 4 words, as words: result j holds byte j of words 0 to 3.
__device__ inline void transpose_bytes(const uint4& words, uint32 (&result)[4]) {
  const uint32 low01 = ptx::permute_bytes(words.x, words.y, 0x5140);
  const uint32 low23 = ptx::permute_bytes(words.z, words.w, 0x5140);
  const uint32 high01 = ptx::permute_bytes(words.x, words.y, 0x7362);
  const uint32 high23 = ptx::permute_bytes(words.z, words.w, 0x7362);
  result[0] = ptx::permute_bytes(low01, low23, 0x5410);
  result[1] = ptx::permute_bytes(low01, low23, 0x7632);
  result[2] = ptx::permute_bytes(high01, high23, 0x5410);
  result[3] = ptx::permute_bytes(high01, high23, 0x7632);
}

// Operand b of one group of tiles, 2 forward and 4 backward: b0 and b1 of each. `weight` is the
// group's first byte in shared memory, of the first k-group (forward) or panel (backward) of this
// half of the stage.
__device__ inline void load_b(uint32 (&b0)[2], uint32 (&b1)[2], uint32 weight, int lane) {
  const int g = lane / 4, t = lane % 4;
  const uint32 place = weight + t * kGroupBytes + ((g / 2 ^ (t & 2)) << 4) + g % 2 * 8;
  const uint2 first = ptx::load_shared_64(place);
  const uint2 second = ptx::load_shared_64(place + 4 * kGroupBytes);
  b0[0] = first.x, b0[1] = first.y, b1[0] = second.x, b1[1] = second.y;
}

__device__ inline void load_b(uint32 (&b0)[4], uint32 (&b1)[4], uint32 weight, int lane) {
  const int g = lane / 4, t = lane % 4;
  const uint32 place = weight + g * kGroupBytes + ((t ^ (g & 2)) << 4);
  transpose_bytes(ptx::load_shared_128(place), b0);
  transpose_bytes(ptx::load_shared_128(place + kPanelBytes), b1);
}

// One stage: 64 of the depth, in two steps of 32.
__device__ inline void multiply_stage(Product& c, uint32 stage, int warp, int lane) {
  const uint32 rows = stage + warp / kWarpsN * (kTileM / kWarpsM) * kDepth;
  const int column = warp % kWarpsN * (kTileN / kWarpsN);
  const uint32 weight = stage + kTileM * kDepth +
                        (kIsBackward ? column / 4 * kGroupBytes : column / kPanel * kPanelBytes);
  // Interleaved, the halves take more registers than there are for two blocks.
#pragma unroll(kIsTight ? 1 : 2)
  for (int step = 0; step < 2; ++step) {
    uint4 a[kRowTiles];
    load_a(a, rows, lane, step);
    const uint32 half = weight + step * (kIsBackward ? 2 * kPanelBytes : 8 * kGroupBytes);
#pragma unroll
    for (int group = 0; group < kColumnTiles / kGroup; ++group) {
      uint32 b0[kGroup], b1[kGroup];
      load_b(b0, b1, half + group * (kIsBackward ? 8 * kGroupBytes : kPanelBytes), lane);
#pragma unroll
      for (int tile = 0; tile < kGroup; ++tile) {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          Bytes::multiply(c[i][kGroup * group + tile], a[i], b0[tile], b1[tile]);
        }
      }
    }
  }
}

__device__ inline void multiply_all(Product& c, const Source& source, int warp, int lane) {
  const uint32 shared = ptx::shared_base();
  const int steps = (source.depth + kDepth - 1) / kDepth;
  const auto load = [&](int step) {
    if (step < steps) {
      const uint32 stage = shared + step % kStages * kStageBytes;
      load_rows(source, stage, step * kDepth);
      load_weight(source, stage + kTileM * kDepth, step * kDepth);
    }
    ptx::commit_copies();
  };
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    ptx::wait_copies<kStages - 2>();
    // Behind it this stage is there for all, and the one before has been read by all.
    ptx::barrier();
    load(step + kStages - 1);
    multiply_stage(c, shared + step % kStages * kStageBytes, warp, lane);
  }
}

// Tile number -> tile, by groups of kRaster rows of tiles, down each before the next column.
__device__ inline void place_tile(Source& source, int columns) {
  const int tiles_m = (source.rows + kTileM - 1) / kTileM;
  const int tiles_n = (columns + kTileN - 1) / kTileN;
  const int number = ptx::block_index_x();
  const int first = number / (kRaster * tiles_n) * kRaster;
  const int height = tiles_m - first < kRaster ? tiles_m - first : kRaster;
  const int within = number - first * tiles_n;
  source.row = (first + within % height) * kTileM;
  source.column = within / height * kTileN;
}

}  // namespace ftrt

extern "C" __global__ void __launch_bounds__(256, FTRT_IS_TIGHT ? 2 : 1)
    w8a8_gemm(const ftrt::int8* a,        // (rows, a_stride), 16-byte aligned
              ftrt::int64 a_stride,       // a multiple of 16
              const ftrt::int8* packed,   // (panels, k_groups, 16, 4)
              int k_groups,               // ⌈in_features / 4⌉
              int rows,                   //
              int columns,                // of y
              int depth,                  // that the product sums over
              const float* row_scale,     // from here on as in epilogue.cuh
              const float* column_scale,  //
              const float* bias,          //
              const ftrt::FTRT_ELEMENT* left, ftrt::int64 left_stride,
              const ftrt::FTRT_ELEMENT* right, ftrt::int64 right_stride,  //
              int outlier_depth, int rank_depth,                          //
              const ftrt::int64* seed, ftrt::uint32 threshold, float keep_factor,
              ftrt::FTRT_ELEMENT* y, ftrt::int64 y_stride) {
  using namespace ftrt;
  const int out_features = kIsBackward ? depth : columns;
  Source source = {a,     a_stride, packed, k_groups, rows,
                   depth, (out_features + kPanel - 1) / kPanel, 0, 0};
  place_tile(source, columns);
  const int warp = ptx::thread_index() / 32, lane = ptx::thread_index() % 32;

  Product product = {};
  multiply_all(product, source, warp, lane);

  const Epilogue<FTRT_ELEMENT> epilogue = {
      rows,  columns,      row_scale,     column_scale, bias, left,      left_stride,
      right, right_stride, outlier_depth, rank_depth,   seed, threshold, keep_factor,
      0,     y,            y_stride};
  using Tile = WarpTile<FTRT_ELEMENT, kRowTiles, kColumnTiles, kGroup, kDrops>;
  typename Tile::Fragments c;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) c[i][j][k] = static_cast<float>(product[i][j][k]);
    }
  }
  Tile(epilogue, source.row + warp / kWarpsN * (kTileM / kWarpsM),
       source.column + warp % kWarpsN * (kTileN / kWarpsN))
      .finish(c);
}
