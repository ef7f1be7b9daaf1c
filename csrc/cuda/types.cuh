// Element types, and the dropout rule. No include: NVRTC has no headers here, kernels need none.
#pragma once

namespace ftrt {

using int8 = signed char;
using int32 = int;
using int64 = long long;
using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned int;
using uint64 = unsigned long long;

// 16-bit floats as their bits; ptx.cuh converts and multiplies them.
struct Float16 {
  uint16 bits;
};
struct BFloat16 {
  uint16 bits;
};

// What -DFTRT_ELEMENT=... (and other type macros) may say: float32, float16, bfloat16 or int8.
using float32 = float;
using float16 = Float16;
using bfloat16 = BFloat16;

// Dropout without a stored mask, as in csrc/include/ftrt/types.h and ftrt/ops/dropout.py: element
// [row, column] is kept iff mix(row_key(row) ^ column · step) >= threshold.
struct Dropout {
  uint64 seed;
  uint32 threshold;  // floor(p · 2^32); 0 keeps everything
  float factor;      // 1 / (1 - p), of what is kept
};

constexpr uint32 kDropoutStep = 0x9E3779B1u;

__device__ inline uint32 dropout_mix(uint32 h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ (h >> 16);
}

__device__ inline uint32 dropout_row_key(const Dropout& dropout, uint32 row) {
  const uint32 low = static_cast<uint32>(dropout.seed);
  const uint32 high = static_cast<uint32>(dropout.seed >> 32);
  return dropout_mix(dropout_mix(row * kDropoutStep ^ low) ^ high);
}

__device__ inline bool is_kept(const Dropout& dropout, uint32 row_key, uint32 column) {
  return dropout_mix(row_key ^ column * kDropoutStep) >= dropout.threshold;
}

}  // namespace ftrt
