// AVX512 vectors for gemm_tile.h and gemm_pack.h; AVX512 F, BW and VL. Lanes that need a further
// extension stand in the translation unit that is compiled for it.
#pragma once

#include <immintrin.h>

#include "gemm.h"

namespace ftrt::cpu {
namespace {

struct Avx512 {
  static constexpr int kWidth = 16;
  using Floats = __m512;

  // transpose_quads of gemm_pack.h: 4 x 4 bytes within each 16, then 4 x 4 of the sixteens.
  static void transpose_quads(const uint8_t* in, uint8_t* out) {
    const __m512i order = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i a = _mm512_shuffle_epi8(_mm512_loadu_si512(in), order);
    const __m512i b = _mm512_shuffle_epi8(_mm512_loadu_si512(in + 64), order);
    const __m512i c = _mm512_shuffle_epi8(_mm512_loadu_si512(in + 128), order);
    const __m512i d = _mm512_shuffle_epi8(_mm512_loadu_si512(in + 192), order);
    const __m512i ab_even = _mm512_shuffle_i32x4(a, b, 0x88);
    const __m512i ab_odd = _mm512_shuffle_i32x4(a, b, 0xdd);
    const __m512i cd_even = _mm512_shuffle_i32x4(c, d, 0x88);
    const __m512i cd_odd = _mm512_shuffle_i32x4(c, d, 0xdd);
    _mm512_storeu_si512(out, _mm512_shuffle_i32x4(ab_even, cd_even, 0x88));
    _mm512_storeu_si512(out + 64, _mm512_shuffle_i32x4(ab_odd, cd_odd, 0x88));
    _mm512_storeu_si512(out + 128, _mm512_shuffle_i32x4(ab_even, cd_even, 0xdd));
    _mm512_storeu_si512(out + 192, _mm512_shuffle_i32x4(ab_odd, cd_odd, 0xdd));
  }

  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static Floats to_floats(const float* sums) { return _mm512_loadu_ps(sums); }
  static Floats to_floats(const int32_t* sums) {
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(sums));
  }

  // Rounded to nearest even; NaNs are quieted, not rounded into infinities.
  static void store_bf16(uint16_t* p, Floats v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
  }

  static __m512i mix(__m512i h) {
    h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
    h = _mm512_mullo_epi32(h, _mm512_set1_epi32(static_cast<int>(0x85ebca6bu)));
    h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 13));
    h = _mm512_mullo_epi32(h, _mm512_set1_epi32(static_cast<int>(0xc2b2ae35u)));
    return _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
  }

  // v, or 0 where the element [row, col + lane] is dropped; kept ones times the factor.
  static Floats keep(Floats v, uint32_t row_key, int64_t col, const Dropout& dropout) {
    const __m512i lane =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(col)), lane);
    const __m512i step =
        _mm512_mullo_epi32(index, _mm512_set1_epi32(static_cast<int>(kDropoutStep)));
    const __m512i bits = mix(_mm512_xor_si512(step, _mm512_set1_epi32(static_cast<int>(row_key))));
    const __mmask16 kept =
        _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(static_cast<int>(dropout.threshold)));
    return _mm512_maskz_mul_ps(kept, v, _mm512_set1_ps(dropout.factor));
  }
};

struct Avx512Lanes {
  static constexpr int kWidth = 16;
  using Lanes = __m512i;

  static Lanes broadcast(const uint8_t* p) {
    int32_t lane;
    __builtin_memcpy(&lane, p, 4);
    return _mm512_set1_epi32(lane);
  }
  static Lanes load_right(const uint8_t* p) { return _mm512_load_si512(p); }
};

struct Avx512Ints {
  using Sum = __m512i;
  using SumElement = int32_t;
  static Sum load_sum(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_sum(int32_t* p, Sum v) { _mm512_storeu_si512(p, v); }
  static Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static Sum subtract(Sum a, int32_t b) { return _mm512_sub_epi32(a, _mm512_set1_epi32(b)); }
};

struct Avx512Sums {
  using Sum = __m512;
  using SumElement = float;
  static Sum load_sum(const float* p) { return _mm512_loadu_ps(p); }
  static void store_sum(float* p, Sum v) { _mm512_storeu_ps(p, v); }
  static Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
};

struct Avx512F32 : Avx512Lanes, Avx512Sums {
  static constexpr Kind kKind = Kind::kF32;
  static constexpr bool kCorrects = false;
  static Sum dot(Sum sum, Lanes a, Lanes b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
};

struct Avx512S16 : Avx512Lanes, Avx512Ints {
  static constexpr Kind kKind = Kind::kS16x2;
  static constexpr bool kCorrects = false;
  static Sum dot(Sum sum, Lanes a, Lanes b) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
  }
};

}  // namespace
}  // namespace ftrt::cpu
