// Numbers in vectors of sixteen lanes: widening, rounding to bfloat16, dropout. In the compiler's
// own vectors, which it splits where a target has narrower ones. The rules of gemm_tile.h hold.
#pragma once

#include <cstdint>
#include <cstring>

#include "gemm.h"

namespace ftrt::cpu {
namespace {

typedef int8_t Bytes16 __attribute__((vector_size(16)));
typedef int32_t Ints16 __attribute__((vector_size(64)));
typedef uint32_t Words16 __attribute__((vector_size(64)));
typedef float Floats16 __attribute__((vector_size(64)));

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

// bfloat16 of sixteen floats in the low halves of the lanes.
inline void round_to_bf16(const Floats16& value, Words16& out) {
  Words16 bits;
  std::memcpy(&bits, &value, 64);
  const Words16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words16 quiet = (bits >> 16) | 0x40u;
  const auto is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out = is_nan ? quiet : rounded;
}

// out[i] = in[i] as float32; bfloat16 is widened exactly.
inline void widen_row(const void* in, Element type, int64_t count, float* out) {
  if (type == Element::kFloat32) {
    std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
  } else if (type == Element::kBFloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(in);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
      std::memcpy(out + i, &bits, sizeof(bits));
    }
  } else {
    const int8_t* from = static_cast<const int8_t*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(from[i]);
  }
}

inline void drop(const Dropout& dropout, int64_t row, int64_t col, int64_t count, float* values) {
  const uint32_t key = dropout_row_key(dropout, row);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = dropout_mix(key ^ static_cast<uint32_t>(col + i) * kDropoutStep);
    values[i] = bits >= dropout.threshold ? values[i] * dropout.factor : 0.0f;
  }
}

inline const uint8_t* element_at(const void* data, Element type, int64_t index) {
  return static_cast<const uint8_t*>(data) + index * element_bytes(type);
}

// Sixteen whole values of a row of b as float32.
inline void widen16(const uint8_t* in, Element type, Floats16& out) {
  if (type == Element::kFloat32) {
    std::memcpy(&out, in, 64);
  } else if (type == Element::kBFloat16) {
    typedef uint16_t Halves __attribute__((vector_size(32)));
    Halves halves;
    std::memcpy(&halves, in, 32);
    const Words16 bits = __builtin_convertvector(halves, Words16) << 16;
    std::memcpy(&out, &bits, 64);
  } else {
    // the step through 16 bits is what GCC turns into vector instructions
    typedef int16_t Shorts __attribute__((vector_size(32)));
    Bytes16 bytes;
    std::memcpy(&bytes, in, 16);
    const Shorts wide = __builtin_convertvector(bytes, Shorts);
    out = __builtin_convertvector(__builtin_convertvector(wide, Ints16), Floats16);
  }
}

// Two values of depth in each lane, as bfloat16; `low` is the first.
inline void store_bf16_pair(const Floats16& low, const Floats16& high, uint8_t* out) {
  Words16 a, b;
  round_to_bf16(low, a);
  round_to_bf16(high, b);
  const Words16 pair = a | (b << 16);
  std::memcpy(out, &pair, 64);
}

// The same for values that bfloat16 holds exactly.
inline void store_exact_pair(const Floats16& low, const Floats16& high, uint8_t* out) {
  Words16 a, b;
  std::memcpy(&a, &low, 64);
  std::memcpy(&b, &high, 64);
  const Words16 pair = (a >> 16) | b;
  std::memcpy(out, &pair, 64);
}

}  // namespace
}  // namespace ftrt::cpu
