// Element types and the dropout rule that kernels and their callers share.
//
// Functions here have internal linkage: a copy that the linker shared between translation units
// might be the one compiled for an instruction set that this CPU lacks.
#pragma once

#include <cstdint>

namespace ftrt {

enum class Element { kFloat32, kBFloat16, kInt8 };

static inline constexpr int64_t element_bytes(Element type) {
  return type == Element::kFloat32 ? 4 : type == Element::kBFloat16 ? 2 : 1;
}

// Dropout without a stored mask. Element [row, col] is kept iff
//
//   mix(row_key(row) ^ col · 0x9E3779B1) >= threshold,
//   row_key(row) = mix(mix(row · 0x9E3779B1 ^ low half of seed) ^ high half of seed),
//
// with mix the 32-bit finalizer of MurmurHash3 (Appleby 2011); kept values are multiplied by
// `factor` = 1 / (1 - p). threshold = floor(p · 2^32); 0 keeps everything.
struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;
  float factor = 1.0f;
};

constexpr uint32_t kDropoutStep = 0x9E3779B1u;

static inline constexpr uint32_t dropout_mix(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ (h >> 16);
}

static inline constexpr uint32_t dropout_row_key(const Dropout& dropout, int64_t row) {
  const uint32_t low = static_cast<uint32_t>(dropout.seed);
  const uint32_t high = static_cast<uint32_t>(dropout.seed >> 32);
  return dropout_mix(dropout_mix(static_cast<uint32_t>(row) * kDropoutStep ^ low) ^ high);
}

}  // namespace ftrt
