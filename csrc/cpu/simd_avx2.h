// AVX2 and FMA vectors for gemm_tile.h; see simd_avx512.h.
#pragma once

#include <immintrin.h>

#include "gemm_pack.h"

namespace ftrt::cpu {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8;
  using Floats = __m256;

  static void transpose_quads(const uint8_t* in, uint8_t* out) {
    cpu::transpose_quads(in, out);
  }

  static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
  static Floats to_floats(const float* sums) { return _mm256_loadu_ps(sums); }
  static Floats to_floats(const int32_t* sums) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)));
  }

  // Rounded to nearest even; NaNs are quieted, not rounded into infinities.
  static void store_bf16(uint16_t* p, Floats v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
    const __m128i low = _mm256_castsi256_si128(words);
    const __m128i high = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
  }

  static __m256i mix(__m256i h) {
    h = _mm256_xor_si256(h, _mm256_srli_epi32(h, 16));
    h = _mm256_mullo_epi32(h, _mm256_set1_epi32(static_cast<int>(0x85ebca6bu)));
    h = _mm256_xor_si256(h, _mm256_srli_epi32(h, 13));
    h = _mm256_mullo_epi32(h, _mm256_set1_epi32(static_cast<int>(0xc2b2ae35u)));
    return _mm256_xor_si256(h, _mm256_srli_epi32(h, 16));
  }

  static Floats keep(Floats v, uint32_t row_key, int64_t col, const Dropout& dropout) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i index = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(col)), lane);
    const __m256i step =
        _mm256_mullo_epi32(index, _mm256_set1_epi32(static_cast<int>(kDropoutStep)));
    const __m256i bits = mix(_mm256_xor_si256(step, _mm256_set1_epi32(static_cast<int>(row_key))));
    // unsigned bits >= threshold
    const __m256i threshold = _mm256_set1_epi32(static_cast<int>(dropout.threshold));
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_max_epu32(bits, threshold), bits);
    const Floats scaled = _mm256_mul_ps(v, _mm256_set1_ps(dropout.factor));
    return _mm256_and_ps(scaled, _mm256_castsi256_ps(kept));
  }
};

struct Avx2Lanes {
  static constexpr int kWidth = 8;
  using Lanes = __m256i;

  static Lanes broadcast(const uint8_t* p) {
    int32_t lane;
    __builtin_memcpy(&lane, p, 4);
    return _mm256_set1_epi32(lane);
  }
  static Lanes load_right(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  }
};

struct Avx2F32 : Avx2Lanes {
  static constexpr Kind kKind = Kind::kF32;
  static constexpr bool kCorrects = false;
  using Sum = __m256;
  using SumElement = float;
  static Sum dot(Sum sum, Lanes a, Lanes b) {
    return _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum);
  }
  static Sum load_sum(const float* p) { return _mm256_loadu_ps(p); }
  static void store_sum(float* p, Sum v) { _mm256_storeu_ps(p, v); }
  static Sum add(Sum a, Sum b) { return _mm256_add_ps(a, b); }
};

// Exact: int16 products are summed in pairs into int32. vpmaddubsw, which takes int8 as it is,
// would saturate its int16 sums.
struct Avx2S16 : Avx2Lanes {
  static constexpr Kind kKind = Kind::kS16x2;
  static constexpr bool kCorrects = false;
  using Sum = __m256i;
  using SumElement = int32_t;
  static Sum dot(Sum sum, Lanes a, Lanes b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
  static Sum load_sum(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store_sum(int32_t* p, Sum v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  static Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
};

}  // namespace
}  // namespace ftrt::cpu
