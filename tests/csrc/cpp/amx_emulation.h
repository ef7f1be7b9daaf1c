// The tile instructions of csrc/cpu/amx_tiles.h in C++, for tests on CPUs without AMX. What the
// instructions compute, and what they refuse, is in the pseudocode of the Intel Architecture
// Instruction Set Extensions Programming Reference, chapter 3; a refusal, there #UD or #GP, is a
// std::logic_error here.
#pragma once

#include <cstdint>

namespace ftrt::emulated {

constexpr int kTiles = 8;
constexpr int kMaxRows = 16;
constexpr int kMaxRowBytes = 64;

// The tile registers of the calling thread.
struct TileState {
  bool is_configured = false;
  int rows[kTiles] = {};
  int row_bytes[kTiles] = {};
  alignas(64) uint8_t data[kTiles][kMaxRows][kMaxRowBytes] = {};
  int64_t configurations = 0;  // how often LDTILECFG ran
};

TileState& tile_state();

// `config`: the 64 bytes that LDTILECFG reads.
void configure(const uint8_t* config);
void release();
void zero(int tile);
void load(int tile, const void* from, int64_t stride);
void store(int tile, void* to, int64_t stride);
void dot_s8(int c, int a, int b);
void dot_bf16(int c, int a, int b);

}  // namespace ftrt::emulated

namespace ftrt::cpu {
namespace {

inline void configure_tiles(const TileConfig& config) {
  emulated::configure(reinterpret_cast<const uint8_t*>(&config));
}

inline void release_tiles() { emulated::release(); }

template <int kTile>
inline void zero_tile() {
  emulated::zero(kTile);
}

template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  emulated::load(kTile, from, stride);
}

template <int kTile>
inline void store_tile(void* to, int64_t stride) {
  emulated::store(kTile, to, stride);
}

template <int kC, int kA, int kB>
inline void dot_tiles_s8() {
  emulated::dot_s8(kC, kA, kB);
}

template <int kC, int kA, int kB>
inline void dot_tiles_bf16() {
  emulated::dot_bf16(kC, kA, kB);
}

}  // namespace
}  // namespace ftrt::cpu
