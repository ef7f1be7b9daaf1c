// One block of c, from packing to the finished numbers: the loops around gemm_tile.h. The rules of
// gemm_tile.h hold.
#pragma once

#include "gemm_pack.h"
#include "gemm_tile.h"

namespace ftrt::cpu {
namespace {

// The low-rank operands of a block in lanes of `Low`.
template <class Low>
void pack_low_rank(const Gemm& gemm, const Block& block, const Scratch& scratch) {
  const Epilogue& e = gemm.epilogue;
  const int64_t steps = (e.rank + lane_depth(Low::kKind) - 1) / lane_depth(Low::kKind);
  for (int64_t i = 0; i < block.rows; ++i) {
    uint8_t* out = scratch.low_left + i * steps * 4;
    const float* from = e.low_left + (block.row + i) * e.rank;
    if constexpr (Low::kKind == Kind::kF32) {
      std::memcpy(out, from, static_cast<size_t>(e.rank) * 4);
    } else {
      uint16_t* to = reinterpret_cast<uint16_t*>(out);
      if (e.rank % 2 != 0) to[e.rank] = 0;
      for (int64_t r = 0; r < e.rank; ++r) to[r] = to_bf16(from[r]);
    }
  }
  Right right;
  right.data = e.low_right;
  right.stride = gemm.cols;
  for (int64_t j = 0; j < block.cols; j += kPanelCols) {
    pack_float_panel<Low::kKind>(right, 0, e.rank, block.col + j, gemm.cols - block.col - j,
                                 scratch.low_right + j / kPanelCols * steps * kPanelBytes);
  }
}

// What a tile's low-rank part is made of, as TileEpilogue has it.
struct LowTile {
  const uint8_t* left;
  int64_t stride;
  const uint8_t* right;
  int64_t panel;
  int64_t steps;
};

// From what pack_low_rank<Low> wrote, for the tile at row i and column j of the block.
template <class Low>
inline LowTile low_tile(const Gemm& gemm, const Scratch& scratch, int64_t i, int64_t j) {
  const int64_t depth = lane_depth(Low::kKind);
  const int64_t steps = (gemm.epilogue.rank + depth - 1) / depth;
  return {scratch.low_left + i * steps * 4, steps * 4,
          scratch.low_right + j / kPanelCols * steps * kPanelBytes, steps * kPanelBytes, steps};
}

// Finishes a tile of `rows` rows of one panel, whose first row and column in the block are i and j.
template <class Set, class Low, int kRows, class SumElement>
void finish_panel(const Gemm& gemm, const Block& block, const LowTile& low, int64_t i, int64_t rows,
                  int64_t j, const SumElement* sums, int64_t stride) {
  const Epilogue& e = gemm.epilogue;
  const int64_t row = block.row + i;
  const int64_t col = block.col + j;
  const int64_t cols = gemm.cols - col < kPanelCols ? gemm.cols - col : kPanelCols;
  const int64_t bytes = element_bytes(e.type);
  float scale[kPanelCols] = {};
  float bias[kPanelCols] = {};
  for (int64_t n = 0; n < cols; ++n) {
    scale[n] = e.col_scale == nullptr ? 1.0f : e.col_scale[col + n];
    bias[n] = e.bias == nullptr ? 0.0f : e.bias[col + n];
  }
  // a tile writes whole panels: the last columns of c take a way round
  alignas(64) uint8_t whole[kRows * kPanelCols * 4];
  uint8_t* c = static_cast<uint8_t*>(e.c) + (row * e.stride + col) * bytes;
  const bool is_whole = cols == kPanelCols;
  const TileEpilogue tile = {
      e.row_scale == nullptr ? nullptr : e.row_scale + row,
      scale,
      bias,
      low.left,
      low.stride,
      low.right,
      low.panel,
      low.steps,
      e.dropout.threshold == 0 ? nullptr : &e.dropout,
      row,
      col,
      is_whole ? c : whole,
      e.type,
      is_whole ? e.stride : kPanelCols,
  };
  Finish<Set, Low, kRows>::run_rows(rows, sums, stride, tile);
  for (int64_t r = 0; !is_whole && r < rows; ++r) {
    std::memcpy(c + r * e.stride * bytes, whole + r * kPanelCols * bytes,
                static_cast<size_t>(cols * bytes));
  }
}

// The whole of gemm.h for one kind: Dot multiplies, LowF32 or LowBf16 the low-rank part.
template <class Set, class Dot, class LowF32, class LowBf16, int kRows, int kPanels>
struct BlockGemm {
  using SumElement = typename Dot::SumElement;
  static constexpr int64_t kTileCols = kPanels * kPanelCols;

  static void pack_left(const Gemm& gemm, const Block& block, int64_t k, int64_t count,
                        const Scratch& scratch) {
    for (int64_t i = 0; i < block.rows; ++i) {
      uint8_t* out = scratch.left + i * scratch.row_bytes;
      pack_left_row<Dot::kKind>(gemm.left, block.row + i, k, count, out);
      if constexpr (Dot::kCorrects) {
        scratch.correction[i] = Dot::correction(out, count);
      }
    }
  }

  static void finish(const Gemm& gemm, const Block& block, const Scratch& scratch, int64_t i,
                     int64_t rows, int64_t j, const SumElement* sums, int64_t stride) {
    if (gemm.low_kind == Kind::kF32) {
      const LowTile low = low_tile<LowF32>(gemm, scratch, i, j);
      finish_panel<Set, LowF32, kRows>(gemm, block, low, i, rows, j, sums, stride);
    } else {
      const LowTile low = low_tile<LowBf16>(gemm, scratch, i, j);
      finish_panel<Set, LowBf16, kRows>(gemm, block, low, i, rows, j, sums, stride);
    }
  }

  // All rows of the block against the panels at columns j..
  template <int kCount>
  static void panels(const Gemm& gemm, const Block& block, const Scratch& scratch, int64_t k,
                     int64_t count, int64_t j) {
    const int64_t steps = (count + lane_depth(Dot::kKind) - 1) / lane_depth(Dot::kKind);
    const uint8_t* b[kCount];
    for (int p = 0; p < kCount; ++p) {
      b[p] = pack_panel<Set, Dot::kKind>(gemm, k, count, block.col + j + p * kPanelCols,
                                         scratch.right + p * (kSliceBytes / 4) * kPanelBytes);
    }
    const bool is_first = k == 0;
    const bool is_last = k + count == gemm.depth;
    const int64_t sums_stride = (block.cols + kTileCols - 1) / kTileCols * kTileCols;
    alignas(64) SumElement own[kRows * kTileCols];
    for (int64_t i = 0; i < block.rows; i += kRows) {
      const int64_t rows = block.rows - i < kRows ? block.rows - i : kRows;
      SumElement* sums = own;
      int64_t stride = kTileCols;
      if (!(is_first && is_last)) {
        sums = reinterpret_cast<SumElement*>(scratch.sums) + i * sums_stride + j;
        stride = sums_stride;
      }
      Tile<Dot, kRows, kCount>::slice_for(rows)(
          scratch.left + i * scratch.row_bytes, scratch.row_bytes, b[0],
          kCount > 1 ? b[kCount - 1] - b[0] : 0, steps, scratch.correction + i, sums, stride,
          !is_first);
      if (is_last) {
        for (int p = 0; p < kCount; ++p) {
          finish(gemm, block, scratch, i, rows, j + p * kPanelCols, sums + p * kPanelCols, stride);
        }
      }
    }
  }

  static void compute(const Gemm& gemm, const Block& block, const Scratch& scratch) {
    if (gemm.epilogue.rank > 0) {
      if (gemm.low_kind == Kind::kF32) {
        pack_low_rank<LowF32>(gemm, block, scratch);
      } else {
        pack_low_rank<LowBf16>(gemm, block, scratch);
      }
    }
    const int64_t slice = kSliceBytes / 4 * lane_depth(Dot::kKind);
    int64_t k = 0;
    do {
      const int64_t count = gemm.depth - k < slice ? gemm.depth - k : slice;
      pack_left(gemm, block, k, count, scratch);
      for (int64_t j = 0; j < block.cols; j += kTileCols) {
        if (block.cols - j > kPanelCols) {
          panels<kPanels>(gemm, block, scratch, k, count, j);
        } else {
          panels<1>(gemm, block, scratch, k, count, j);
        }
      }
      k += slice;
    } while (k < gemm.depth);
  }
};

}  // namespace
}  // namespace ftrt::cpu
