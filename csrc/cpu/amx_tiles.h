// The tile instructions of AMX: eight registers of up to 16 rows by 64 bytes (Intel Architecture
// Instruction Set Extensions Programming Reference, chapter 3). With FTRT_EMULATE_AMX, which only
// tests define, the same functions are plain C++.
//
// Written as assembly: in GCC's own intrinsics (11 to 13) neither the configuration nor what a tile
// is loaded from counts as read, so stores to them may be moved behind or dropped.
#pragma once

#include <cstdint>

namespace ftrt::cpu {
namespace {

// What LDTILECFG reads. Palette 1; tile t has rows[t] rows of row_bytes[t] bytes.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace
}  // namespace ftrt::cpu

#ifdef FTRT_EMULATE_AMX
#include "amx_emulation.h"
#else

namespace ftrt::cpu {
namespace {

inline void configure_tiles(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}

inline void release_tiles() { __asm__ volatile("tilerelease" : : : "memory"); }

template <int kTile>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Row i comes from `from` + i · stride bytes.
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "i"(kTile)
                   : "memory");
}

template <int kTile>
inline void store_tile(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(to), "r"(stride), "i"(kTile)
                   : "memory");
}

// int32 c[m, n] += Σ a[m, k] b[k / 4, n, k % 4] over int8
template <int kC, int kA, int kB>
inline void dot_tiles_s8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

// float32 c[m, n] += Σ a[m, k] b[k / 2, n, k % 2] over bfloat16. Subnormal numbers count as zero,
// results are rounded to nearest even whatever the mode.
template <int kC, int kA, int kB>
inline void dot_tiles_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace ftrt::cpu

#endif
