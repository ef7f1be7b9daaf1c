// Four-lane vectors in the compiler's own vector extension, for any target; see simd_avx512.h.
#pragma once

#include <cstring>

#include "gemm_pack.h"

namespace ftrt::cpu {
namespace {

struct Portable {
  static constexpr int kWidth = 4;
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));

  static void transpose_quads(const uint8_t* in, uint8_t* out) {
    cpu::transpose_quads(in, out);
  }

  static Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }
  static Floats to_floats(const float* sums) { return load(sums); }
  static Floats to_floats(const int32_t* sums) {
    Ints v;
    std::memcpy(&v, sums, sizeof(v));
    return __builtin_convertvector(v, Floats);
  }

  // Rounded to nearest even; NaNs are quieted, not rounded into infinities.
  static void store_bf16(uint16_t* p, Floats v) {
    for (int lane = 0; lane < kWidth; ++lane) {
      const float one = v[lane];
      uint32_t bits;
      std::memcpy(&bits, &one, sizeof(bits));
      const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      const uint32_t quiet = (bits >> 16) | 0x40u;
      p[lane] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
  }

  static Floats keep(Floats v, uint32_t row_key, int64_t col, const Dropout& dropout) {
    for (int lane = 0; lane < kWidth; ++lane) {
      const uint32_t bits =
          dropout_mix(row_key ^ static_cast<uint32_t>(col + lane) * kDropoutStep);
      v[lane] = bits >= dropout.threshold ? v[lane] * dropout.factor : 0.0f;
    }
    return v;
  }
};

struct PortableF32 {
  static constexpr int kWidth = 4;
  static constexpr Kind kKind = Kind::kF32;
  static constexpr bool kCorrects = false;
  using Lanes = Portable::Floats;
  using Sum = Portable::Floats;
  using SumElement = float;

  static Lanes broadcast(const uint8_t* p) {
    float lane;
    std::memcpy(&lane, p, sizeof(lane));
    return Lanes{lane, lane, lane, lane};
  }
  static Lanes load_right(const uint8_t* p) {
    Lanes v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static Sum dot(Sum sum, Lanes a, Lanes b) { return sum + a * b; }
  static Sum load_sum(const float* p) { return Portable::load(p); }
  static void store_sum(float* p, Sum v) { Portable::store(p, v); }
  static Sum add(Sum a, Sum b) { return a + b; }
};

}  // namespace
}  // namespace ftrt::cpu
