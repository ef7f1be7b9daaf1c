#include "amx_tiles.h"

#include <cstring>
#include <stdexcept>

namespace ftrt::emulated {
namespace {

void refuse_unless(bool holds, const char* rule) {
  if (!holds) throw std::logic_error(rule);
}

void need_tile(int tile) {
  refuse_unless(tile_state().is_configured, "#UD: tiles are not configured");
  refuse_unless(tile_state().rows[tile] > 0, "#UD: the tile is not configured");
}

// The shapes that TDPBSSD and TDPBF16PS accept.
void need_product(int c, int a, int b) {
  for (const int tile : {c, a, b}) need_tile(tile);
  const TileState& s = tile_state();
  refuse_unless(c != a && c != b && a != b, "#UD: operands are the same tile");
  for (const int tile : {c, a, b}) {
    refuse_unless(s.row_bytes[tile] % 4 == 0, "#UD: rows are not whole lanes");
  }
  refuse_unless(s.rows[a] == s.rows[c], "#UD: a and c differ in rows");
  refuse_unless(s.row_bytes[b] == s.row_bytes[c], "#UD: b and c differ in columns");
  refuse_unless(s.row_bytes[a] == s.rows[b] * 4, "#UD: a and b differ in depth");
}

// Rows and bytes outside the configured shape become zero with every write of a tile.
void zero_outside(int tile) {
  TileState& s = tile_state();
  for (int i = 0; i < kMaxRows; ++i) {
    const int kept = i < s.rows[tile] ? s.row_bytes[tile] : 0;
    std::memset(s.data[tile][i] + kept, 0, static_cast<size_t>(kMaxRowBytes - kept));
  }
}

inline float without_subnormals(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// 32 bfloat16 as float32, subnormal ones as zero.
void decode_row(const uint8_t* row, float* out) {
  for (int i = 0; i < kMaxRowBytes / 2; ++i) {
    uint16_t half;
    std::memcpy(&half, row + 2 * i, sizeof(half));
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(out + i, &bits, sizeof(bits));
    out[i] = without_subnormals(out[i]);
  }
}

}  // namespace

TileState& tile_state() {
  thread_local TileState state;
  return state;
}

void configure(const uint8_t* config) {
  TileState& s = tile_state();
  const int64_t count = s.configurations + 1;
  if (config[0] == 0) {
    s = TileState();
    s.configurations = count;
    return;
  }
  refuse_unless(config[0] == 1, "#GP: no such palette");
  for (int i = 2; i < 16; ++i) refuse_unless(config[i] == 0, "#GP: reserved bytes are not zero");
  TileState next;
  for (int tile = 0; tile < 16; ++tile) {
    uint16_t bytes;
    std::memcpy(&bytes, config + 16 + 2 * tile, sizeof(bytes));
    const int rows = config[48 + tile];
    if (tile >= kTiles) {
      refuse_unless(bytes == 0 && rows == 0, "#GP: reserved bytes are not zero");
      continue;
    }
    refuse_unless(bytes <= kMaxRowBytes && rows <= kMaxRows, "#GP: a tile is too large");
    refuse_unless((bytes == 0) == (rows == 0), "#GP: a tile has rows or columns, not both");
    next.rows[tile] = rows;
    next.row_bytes[tile] = bytes;
  }
  next.is_configured = true;
  next.configurations = count;
  s = next;
}

void release() {
  const int64_t count = tile_state().configurations;
  tile_state() = TileState();
  tile_state().configurations = count;
}

void zero(int tile) {
  need_tile(tile);
  std::memset(tile_state().data[tile], 0, sizeof(tile_state().data[tile]));
}

void load(int tile, const void* from, int64_t stride) {
  need_tile(tile);
  TileState& s = tile_state();
  for (int i = 0; i < s.rows[tile]; ++i) {
    std::memcpy(s.data[tile][i], static_cast<const uint8_t*>(from) + i * stride,
                static_cast<size_t>(s.row_bytes[tile]));
  }
  zero_outside(tile);
}

void store(int tile, void* to, int64_t stride) {
  need_tile(tile);
  const TileState& s = tile_state();
  for (int i = 0; i < s.rows[tile]; ++i) {
    std::memcpy(static_cast<uint8_t*>(to) + i * stride, s.data[tile][i],
                static_cast<size_t>(s.row_bytes[tile]));
  }
}

void dot_s8(int c, int a, int b) {
  need_product(c, a, b);
  TileState& s = tile_state();
  for (int m = 0; m < s.rows[c]; ++m) {
    for (int n = 0; n < s.row_bytes[c] / 4; ++n) {
      uint32_t sum;  // wraps around, as the instruction's does
      std::memcpy(&sum, s.data[c][m] + 4 * n, sizeof(sum));
      for (int k = 0; k < s.row_bytes[a]; ++k) {
        const int x = static_cast<int8_t>(s.data[a][m][k]);
        const int w = static_cast<int8_t>(s.data[b][k / 4][4 * n + k % 4]);
        sum += static_cast<uint32_t>(x * w);
      }
      std::memcpy(s.data[c][m] + 4 * n, &sum, sizeof(sum));
    }
  }
  zero_outside(c);
}

void dot_bf16(int c, int a, int b) {
  need_product(c, a, b);
  TileState& s = tile_state();
  float right[kMaxRows][kMaxRowBytes / 2];
  for (int k = 0; k < s.rows[b]; ++k) decode_row(s.data[b][k], right[k]);
  for (int m = 0; m < s.rows[c]; ++m) {
    float left[kMaxRowBytes / 2];
    decode_row(s.data[a][m], left);
    for (int n = 0; n < s.row_bytes[c] / 4; ++n) {
      // even and odd elements have a sum each, added up at the end
      float sums[2] = {0.0f, 0.0f};
      for (int k = 0; k < s.rows[b]; ++k) {
        for (int half = 0; half < 2; ++half) {
          const float sum = __builtin_fmaf(left[2 * k + half], right[k][2 * n + half], sums[half]);
          sums[half] = without_subnormals(sum);
        }
      }
      float value;
      std::memcpy(&value, s.data[c][m] + 4 * n, sizeof(value));
      value = without_subnormals(value);
      value = without_subnormals(value + without_subnormals(sums[0] + sums[1]));
      std::memcpy(s.data[c][m] + 4 * n, &value, sizeof(value));
    }
  }
  zero_outside(c);
}

}  // namespace ftrt::emulated
