// Compiled with the flags of AVX512-BF16 and -mamx-tile -mamx-int8 -mamx-bf16.
//
// Tiles of 16 rows by 64 bytes take both operands as gemm.h lays them out: a tile of a is 64 bytes
// of 16 packed rows, a tile of b is 16 steps of a panel. Every tile has the full size. What is
// missing at the edges is zeros in scratch memory, never whatever lies behind a buffer.
#include "amx_tiles.h"
#include "ceiling_loop.h"
#include "dots_avx512_bf16.h"
#include "gemm_block.h"
#include "quantize_rows.h"

namespace ftrt::cpu {
namespace {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileSteps = 16;
inline constexpr int64_t kTileBytes = kTileSteps * kPanelBytes;
// Rows and columns of c that four tiles of sums hold.
inline constexpr int64_t kPairRows = 2 * kTileRows;
inline constexpr int64_t kPairCols = 2 * kPanelCols;
// Tiles along the depth that two panels are multiplied by before the next rows come: 16 KB of b
// stay in the 48 KB L1 cache beside 16 KB of a and 4 KB of sums. Longer runs would read b from L2,
// whose bandwidth suffices for one operand of the two.
inline constexpr int64_t kRunTiles = 8;
// Every CPU with AMX has 2 MB of L2 cache or more. Many rows, because unpacking a tile of weights
// for the backward pass costs as much as multiplying some 70 rows by it; many columns, because
// packing a row costs as much as multiplying it by some 100 of them.
inline constexpr int64_t kAmxMaxLeftBytes = 960 * 1024;
inline constexpr int64_t kAmxMaxSlicedCols = 1024;

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct AmxS8 {
  static constexpr Kind kKind = Kind::kS8x4;
  using SumElement = int32_t;
  template <int kC, int kA, int kB>
  static void dot() {
    dot_tiles_s8<kC, kA, kB>();
  }
};

struct AmxBf16 {
  static constexpr Kind kKind = Kind::kBf16x2;
  using SumElement = float;
  template <int kC, int kA, int kB>
  static void dot() {
    dot_tiles_bf16<kC, kA, kB>();
  }
};

// Stands for a low-rank part that tiles have multiplied: its float32 sums are where `a` points.
struct LowSums {};

template <int kRows>
struct Tile<LowSums, kRows, 1> {
  static inline void multiply(const uint8_t* a, int64_t a_stride, const uint8_t*, int64_t, int64_t,
                              __m512 (&sum)[kRows][1]) {
    for (int i = 0; i < kRows; ++i) sum[i][0] = _mm512_load_ps(a + i * a_stride);
  }
};

void configure_full_tiles() {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = kTileRows;
    config.row_bytes[tile] = kPanelBytes;
  }
  configure_tiles(config);
}

// c (+)= a · b with a of kRowTiles · 16 rows at a_stride bytes, b of kPanels panels and c at
// c_stride bytes. Tiles 0 to 3 hold c, 4 and 5 a, 6 and 7 b.
template <class Dot, int kRowTiles, int kPanels>
void multiply_tiles(const uint8_t* a, int64_t a_stride, const uint8_t* const* b, int64_t tiles,
                    uint8_t* c, int64_t c_stride, bool accumulate) {
  const int64_t lower = kTileRows * c_stride;
  if (!accumulate) {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
  } else {
    load_tile<0>(c, c_stride);
    if constexpr (kPanels > 1) load_tile<1>(c + kPanelBytes, c_stride);
    if constexpr (kRowTiles > 1) load_tile<2>(c + lower, c_stride);
    if constexpr (kRowTiles > 1 && kPanels > 1) load_tile<3>(c + lower + kPanelBytes, c_stride);
  }
  for (int64_t t = 0; t < tiles; ++t, a += kPanelBytes) {
    load_tile<6>(b[0] + t * kTileBytes, kPanelBytes);
    load_tile<4>(a, a_stride);
    Dot::template dot<0, 4, 6>();
    if constexpr (kPanels > 1) {
      load_tile<7>(b[1] + t * kTileBytes, kPanelBytes);
      Dot::template dot<1, 4, 7>();
    }
    if constexpr (kRowTiles > 1) {
      load_tile<5>(a + kTileRows * a_stride, a_stride);
      Dot::template dot<2, 5, 6>();
      if constexpr (kPanels > 1) Dot::template dot<3, 5, 7>();
    }
  }
  store_tile<0>(c, c_stride);
  if constexpr (kPanels > 1) store_tile<1>(c + kPanelBytes, c_stride);
  if constexpr (kRowTiles > 1) store_tile<2>(c + lower, c_stride);
  if constexpr (kRowTiles > 1 && kPanels > 1) store_tile<3>(c + lower + kPanelBytes, c_stride);
}

// Lanes of the low-rank operands' rows and panels, whole tiles of them.
inline int64_t low_steps(const Gemm& gemm) {
  return round_up((gemm.epilogue.rank + 1) / 2, kTileSteps);
}

// The low-rank operands of a block as bfloat16 tiles.
void pack_low_tiles(const Gemm& gemm, const Block& block, const Scratch& scratch) {
  const Epilogue& e = gemm.epilogue;
  const int64_t steps = low_steps(gemm);
  for (int64_t i = 0; i < round_up(block.rows, kTileRows); ++i) {
    uint16_t* to = reinterpret_cast<uint16_t*>(scratch.low_left + i * steps * 4);
    const int64_t rank = i < block.rows ? e.rank : 0;
    for (int64_t r = 0; r < rank; ++r) to[r] = to_bf16(e.low_left[(block.row + i) * e.rank + r]);
    std::memset(to + rank, 0, static_cast<size_t>(steps * 2 - rank) * 2);
  }
  Right right;
  right.data = e.low_right;
  right.stride = gemm.cols;
  const int64_t filled = (e.rank + 1) / 2;
  for (int64_t j = 0; j < block.cols; j += kPanelCols) {
    uint8_t* panel = scratch.low_right + j / kPanelCols * steps * kPanelBytes;
    pack_float_panel<Kind::kBf16x2>(right, 0, e.rank, block.col + j, gemm.cols - block.col - j,
                                    panel);
    std::memset(panel + filled * kPanelBytes, 0,
                static_cast<size_t>((steps - filled) * kPanelBytes));
  }
}

// The whole of gemm.h for one kind.
template <class Dot>
struct AmxGemm {
  using SumElement = typename Dot::SumElement;
  static constexpr int64_t kSumsStride = kPairCols * 4;

  // Returns the bytes of each packed row.
  static int64_t pack_left(const Gemm& gemm, const Block& block, int64_t k, int64_t count,
                           const Scratch& scratch) {
    const int64_t bytes = round_up(count * 4 / lane_depth(Dot::kKind), kPanelBytes);
    for (int64_t i = 0; i < block.rows; ++i) {
      pack_left_row<Dot::kKind>(gemm.left, block.row + i, k, count,
                                scratch.left + i * scratch.row_bytes);
    }
    for (int64_t i = block.rows; i < round_up(block.rows, kTileRows); ++i) {
      std::memset(scratch.left + i * scratch.row_bytes, 0, static_cast<size_t>(bytes));
    }
    return bytes;
  }

  // One panel in whole tiles: packed weights in place, unless their last tile has to be filled up.
  static const uint8_t* pack_right(const Gemm& gemm, int64_t k, int64_t count, int64_t col,
                                   uint8_t* out) {
    const uint8_t* b = pack_panel<Avx512, Dot::kKind>(gemm, k, count, col, out);
    const int64_t steps = (count + lane_depth(Dot::kKind) - 1) / lane_depth(Dot::kKind);
    const int64_t whole = round_up(steps, kTileSteps);
    if (steps == whole) return b;
    if (b != out) std::memcpy(out, b, static_cast<size_t>(steps * kPanelBytes));
    std::memset(out + steps * kPanelBytes, 0, static_cast<size_t>((whole - steps) * kPanelBytes));
    return out;
  }

  // Finishes the sums of up to 32 rows and kPanels panels.
  template <int kRowTiles, int kPanels>
  static void finish(const Gemm& gemm, const Block& block, const Scratch& scratch, int64_t i,
                     int64_t j, const SumElement* sums) {
    const bool has_tiles = gemm.epilogue.rank > 0 && gemm.low_kind == Kind::kBf16x2;
    alignas(64) uint8_t low_sums[kPairRows * kSumsStride];
    if (has_tiles) {
      const int64_t steps = low_steps(gemm);
      const uint8_t* right = scratch.low_right + j / kPanelCols * steps * kPanelBytes;
      const uint8_t* const b[2] = {right, right + steps * kPanelBytes};
      multiply_tiles<AmxBf16, kRowTiles, kPanels>(scratch.low_left + i * steps * 4, steps * 4, b,
                                                  steps / kTileSteps, low_sums, kSumsStride, false);
    }
    for (int64_t r = 0; r < kRowTiles * kTileRows; r += kTileRows) {
      const int64_t left = block.rows - i - r;
      const int64_t rows = left < kTileRows ? left : kTileRows;
      for (int64_t p = 0; p < kPanels * kPanelCols; p += kPanelCols) {
        const SumElement* from = sums + r * kPairCols + p;
        if (has_tiles) {
          const LowTile low = {low_sums + r * kSumsStride + p * 4, kSumsStride, nullptr, 0, 1};
          finish_panel<Avx512, LowSums, kTileRows>(gemm, block, low, i + r, rows, j + p, from,
                                                   kPairCols);
        } else {
          const LowTile low = low_tile<Avx512F32>(gemm, scratch, i + r, j + p);
          finish_panel<Avx512, Avx512F32, kTileRows>(gemm, block, low, i + r, rows, j + p, from,
                                                     kPairCols);
        }
      }
    }
  }

  // Up to 32 rows by kPanels panels, from tile `t` of a slice to the end of the run.
  template <int kRowTiles, int kPanels>
  static void run(const Gemm& gemm, const Block& block, const Scratch& scratch, int64_t i,
                  int64_t j, const uint8_t* const* b, int64_t t, int64_t tiles, SumElement* sums,
                  bool is_first, bool is_last) {
    const uint8_t* const at[2] = {b[0] + t * kTileBytes, b[kPanels - 1] + t * kTileBytes};
    const uint8_t* a = scratch.left + i * scratch.row_bytes + t * kPanelBytes;
    multiply_tiles<Dot, kRowTiles, kPanels>(a, scratch.row_bytes, at, tiles,
                                            reinterpret_cast<uint8_t*>(sums), kSumsStride,
                                            !is_first);
    if (is_last) finish<kRowTiles, kPanels>(gemm, block, scratch, i, j, sums);
  }

  // All rows of the block against the panels at columns j.. of a slice. The sums of 32 columns lie
  // together, (rows, 32).
  template <int kPanels>
  static void panels(const Gemm& gemm, const Block& block, const Scratch& scratch, int64_t k,
                     int64_t count, int64_t j, int64_t row_bytes) {
    const uint8_t* b[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      b[p] = pack_right(gemm, k, count, block.col + j + p * kPanelCols,
                        scratch.right + p * (kSliceBytes / 4) * kPanelBytes);
    }
    const bool is_whole = count == gemm.depth;
    SumElement* sums = reinterpret_cast<SumElement*>(scratch.sums);
    if (!is_whole) sums += j * round_up(block.rows, kPairRows);
    const int64_t tiles = row_bytes / kPanelBytes;
    int64_t t = 0;
    do {
      const int64_t run_tiles = tiles - t < kRunTiles ? tiles - t : kRunTiles;
      const bool is_first = k == 0 && t == 0;
      const bool is_last = k + count == gemm.depth && t + run_tiles == tiles;
      for (int64_t i = 0; i < block.rows; i += kPairRows) {
        SumElement* c = sums + i * kPairCols;
        if (block.rows - i > kTileRows) {
          run<2, kPanels>(gemm, block, scratch, i, j, b, t, run_tiles, c, is_first, is_last);
        } else {
          run<1, kPanels>(gemm, block, scratch, i, j, b, t, run_tiles, c, is_first, is_last);
        }
      }
      t += run_tiles;
    } while (t < tiles);
  }

  static void compute(const Gemm& gemm, const Block& block, const Scratch& scratch) {
    if (gemm.epilogue.rank > 0) {
      if (gemm.low_kind == Kind::kBf16x2) {
        pack_low_tiles(gemm, block, scratch);
      } else {
        pack_low_rank<Avx512F32>(gemm, block, scratch);
      }
    }
    configure_full_tiles();
    const int64_t slice = kSliceBytes / 4 * lane_depth(Dot::kKind);
    int64_t k = 0;
    do {
      const int64_t count = gemm.depth - k < slice ? gemm.depth - k : slice;
      const int64_t row_bytes = pack_left(gemm, block, k, count, scratch);
      for (int64_t j = 0; j < block.cols; j += kPairCols) {
        if (block.cols - j > kPanelCols) {
          panels<2>(gemm, block, scratch, k, count, j, row_bytes);
        } else {
          panels<1>(gemm, block, scratch, k, count, j, row_bytes);
        }
      }
      k += slice;
    } while (k < gemm.depth);
    release_tiles();
  }
};

// ceiling_loop on tiles.
template <class Dot>
int64_t tile_ceiling(int64_t iterations) {
  configure_full_tiles();  // and zero them
  for (int64_t i = 0; i < iterations; ++i) {
    Dot::template dot<0, 4, 6>();
    Dot::template dot<1, 4, 7>();
    Dot::template dot<2, 5, 6>();
    Dot::template dot<3, 5, 7>();
  }
  release_tiles();
  return iterations * 4 * kTileRows * kPanelCols * kTileSteps * lane_depth(Dot::kKind) * 2;
}

using BlockF32 = BlockGemm<Avx512, Avx512F32, Avx512F32, Avx512Bf16, 14, 2>;
constexpr GemmKernel kF32 = {14, &BlockF32::compute};
constexpr GemmKernel kS8 = {kPairRows, &AmxGemm<AmxS8>::compute, kAmxMaxLeftBytes,
                            kAmxMaxSlicedCols};
constexpr GemmKernel kBf16 = {kPairRows, &AmxGemm<AmxBf16>::compute, kAmxMaxLeftBytes,
                              kAmxMaxSlicedCols};

}  // namespace

const KernelSet kAmxKernels = {
    &kS8, Kind::kS8x4, &kBf16, &kF32, &quantize_rows, &tile_ceiling<AmxS8>,
    &tile_ceiling<AmxBf16>, &ceiling_loop<Avx512F32>};

}  // namespace ftrt::cpu
