// int8 lanes for units compiled with -mavx512vnni.
#pragma once

#include "simd_avx512.h"

namespace ftrt::cpu {
namespace {

// vpdpbusd multiplies unsigned by signed bytes. The weights become unsigned on the way into a
// register, w + 128, which adds 128 · Σ a[k] to every sum of a row; that is subtracted afterwards
// (`correction`). Rows change with every call and are summed while they are packed; weights need no
// second form in memory, and both directions read the same bytes.
struct Avx512Vnni : Avx512Lanes, Avx512Ints {
  static constexpr Kind kKind = Kind::kS8x4;
  static constexpr bool kCorrects = true;
  static Lanes load_right(const uint8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static Sum dot(Sum sum, Lanes a, Lanes b) { return _mm512_dpbusd_epi32(sum, b, a); }

  // What to subtract from the sums of a row: 128 · Σ row.
  //   row: whole 64 bytes, zeros behind its `bytes`.
  static int32_t correction(const uint8_t* row, int64_t bytes) {
    __m512i sums = _mm512_setzero_si512();
    for (int64_t i = 0; i < bytes; i += 64) {
      sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), _mm512_loadu_si512(row + i));
    }
    return 128 * _mm512_reduce_add_epi32(sums);
  }
};

}  // namespace
}  // namespace ftrt::cpu
