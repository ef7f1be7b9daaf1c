// bfloat16 lanes for units compiled with -mavx512bf16.
#pragma once

#include "simd_avx512.h"

namespace ftrt::cpu {
namespace {

// vdpbf16ps flushes subnormal inputs and results to zero and rounds to nearest even whatever the
// mode.
struct Avx512Bf16 : Avx512Lanes, Avx512Sums {
  static constexpr Kind kKind = Kind::kBf16x2;
  static constexpr bool kCorrects = false;
  static Sum dot(Sum sum, Lanes a, Lanes b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};

}  // namespace
}  // namespace ftrt::cpu
