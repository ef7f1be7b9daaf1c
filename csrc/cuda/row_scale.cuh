// Symmetric int8 quantization of a row: q = v / scale to the nearest, halves to even, within
// -127..127, with scale = max |v| / 127. As csrc/cpu/quantize_rows.h, bit for bit.
//
// Columns that are to be left out ("outliers") stand in shared memory as one bit a column.
#pragma once

#include "elements.cuh"

namespace ftrt {

// ---- columns left out ----

// Writes the bits of all columns, ⌈features / 32⌉ words from `mask` on; for the block after a
// barrier within. outliers: sorted. Called by all `threads` threads of the block.
__device__ inline void build_outlier_mask(uint32 mask, int features, const int64* outliers,
                                          int count, int threads) {
  const int thread = static_cast<int>(ptx::thread_index());
  for (int word = thread; word < (features + 31) / 32; word += threads) {
    ptx::store_shared_32(mask + 4 * word, 0);
  }
  ptx::barrier();
  for (int i = thread; i < count; i += threads) {
    // The first outlier of a word writes the word, for those behind it as well.
    const int word = static_cast<int>(outliers[i] >> 5);
    if (i > 0 && static_cast<int>(outliers[i - 1] >> 5) == word) continue;
    uint32 bits = 0;
    for (int j = i; j < count && static_cast<int>(outliers[j] >> 5) == word; ++j) {
      bits |= 1u << (outliers[j] & 31);
    }
    ptx::store_shared_32(mask + 4 * word, bits);
  }
  ptx::barrier();
}

// Bits of the columns from k on; good for those in the same 32 as k.
__device__ inline uint32 outlier_bits(uint32 mask, int k) {
  return ptx::load_shared_32(mask + k / 32 * 4) >> (k % 32);
}

// ---- scale ----

// max(most, |v|) over the values, as bits: positive floats are ordered like whole numbers, and NaNs
// stand above infinity, so that a row with a NaN has one for its maximum.
template <int kCount>
__device__ inline uint32 larger(uint32 most, const float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint32 bits = ptx::float_bits(values[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return most;
}

// larger() over the lanes of a warp; every lane gets it.
__device__ inline uint32 warp_maximum(uint32 most) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32 other = ptx::float_bits(ptx::exchange(ptx::float_of_bits(most), mask));
    most = other > most ? other : most;
  }
  return most;
}

struct RowScale {
  float scale;
  float inverse;
  bool is_finite;  // else q is 0, and the scale makes whatever is computed from the row NaN
  bool divides;    // a subnormal's reciprocal may be infinite
};

__device__ inline RowScale row_scale(uint32 maximum) {
  constexpr uint32 kInfinity = 0x7f800000u;
  constexpr float kSmallestNormal = 1.17549435e-38f;
  float scale = ptx::float_of_bits(maximum) / 127.0f;
  // zero, or less than the smallest float32: everything rounds to 0
  if (scale == 0.0f) scale = 1.0f;
  return {scale, 1.0f / scale, maximum < kInfinity, scale < kSmallestNormal};
}

// ---- values ----

// Four int8 as one word.
__device__ inline uint32 quantize_four(float v0, float v1, float v2, float v3,
                                       const RowScale& row) {
  if (!row.is_finite) return 0;
  float values[4] = {v0, v1, v2, v3};
  uint32 bits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float level = values[i] * row.inverse;
    if (row.divides) {
      // Here alone the rounding of the scale is coarse enough to leave -127..127.
      level = values[i] / row.scale;
      level = level < -127.0f ? -127.0f : level > 127.0f ? 127.0f : level;
    }
    bits[i] = ptx::round_to_byte(level);
  }
  const uint32 low = ptx::permute_bytes(bits[0], bits[1], 0x0040);
  const uint32 high = ptx::permute_bytes(bits[2], bits[3], 0x0040);
  return ptx::permute_bytes(low, high, 0x5410);
}

// Writes the first `count` of 4 or 8 values of a row. `aligned`: `to` is a multiple of kCount.
template <int kCount>
__device__ inline void store_quantized(int8* to, const float (&values)[kCount],
                                       const RowScale& row, int count, bool aligned) {
  static_assert(kCount == 4 || kCount == 8, "one or two words");
  uint2 q = {quantize_four(values[0], values[1], values[2], values[3], row), 0};
  if constexpr (kCount == 8) {
    q.y = quantize_four(values[4], values[5], values[6], values[7], row);
  }
  if (aligned && count >= kCount) {
    if constexpr (kCount == 8) {
      *reinterpret_cast<uint2*>(to) = q;
    } else {
      *reinterpret_cast<uint32*>(to) = q.x;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) to[i] = static_cast<int8>((i < 4 ? q.x : q.y) >> (8 * (i % 4)));
  }
}

}  // namespace ftrt
