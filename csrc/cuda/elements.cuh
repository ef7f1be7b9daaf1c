// Rows in global memory, 16 bytes at a time, at any alignment; and elements as floats.
#pragma once

#include "ptx.cuh"

namespace ftrt {

// Elements of a chunk of 16 bytes.
template <typename Element>
constexpr int kPerChunk = 16 / static_cast<int>(sizeof(Element));

// Whether each row starts at a multiple of `bytes`, a power of two.
template <typename Element>
__device__ inline bool is_aligned(const Element* data, int64 stride, uint32 bytes) {
  const uint64 offsets = reinterpret_cast<uint64>(data) |
                         static_cast<uint64>(stride) * static_cast<uint64>(sizeof(Element));
  return offsets % bytes == 0;
}

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(Float16 value) { return ptx::widen_half(value.bits, value); }
__device__ inline float widen(BFloat16 value) { return ptx::widen_half(value.bits, value); }
__device__ inline float widen(int8 value) { return static_cast<float>(value); }

__device__ inline uint32 element_bits(float value) { return ptx::float_bits(value); }
__device__ inline uint32 element_bits(Float16 value) { return value.bits; }
__device__ inline uint32 element_bits(BFloat16 value) { return value.bits; }
__device__ inline uint32 element_bits(int8 value) { return static_cast<uint8>(value); }

// value rounded to nearest even; the type of the second argument is that of the result.
__device__ inline float narrow(float value, float) { return value; }
template <typename Half>
__device__ inline Half narrow(float value, Half) {
  Half half;
  half.bits = static_cast<uint16>(ptx::pack_halves(value, 0.0f, Half{}));
  return half;
}

// The first `count` elements from `from` on and zeros behind them; any count. `aligned`: `from` is
// a multiple of 16 bytes.
template <typename Element>
__device__ inline uint4 load_chunk(const Element* from, int count, bool aligned) {
  constexpr int kBits = 8 * static_cast<int>(sizeof(Element));
  constexpr int kPerWord = 32 / kBits;
  if (aligned && count >= kPerChunk<Element>) return *reinterpret_cast<const uint4*>(from);
  uint32 words[4] = {};
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    // Not unrolled for int8: 16 loads at once take registers from those who never need them.
#pragma unroll(kBits == 8 ? 1 : kPerWord)
    for (int i = 0; i < kPerWord; ++i) {
      const int element = word * kPerWord + i;
      if (element < count) words[word] |= element_bits(from[element]) << (kBits * i);
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// Writes the first `count` elements of a chunk.
template <typename Element>
__device__ inline void store_chunk(Element* to, const uint4& chunk, int count, bool aligned) {
  constexpr int kBits = 8 * static_cast<int>(sizeof(Element));
  constexpr int kPerWord = 32 / kBits;
  if (aligned && count >= kPerChunk<Element>) {
    *reinterpret_cast<uint4*>(to) = chunk;
    return;
  }
  const uint32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < kPerChunk<Element>; ++i) {
    if (i >= count) continue;
    const uint32 bits = words[i / kPerWord] >> (kBits * (i % kPerWord));
    if constexpr (kBits == 32) {
      to[i] = ptx::float_of_bits(bits);
    } else if constexpr (kBits == 16) {
      to[i].bits = static_cast<uint16>(bits);
    } else {
      to[i] = static_cast<int8>(bits);
    }
  }
}

// A chunk with the elements zeroed whose bit is set in `bits`, element 0 being bit 0.
template <typename Element>
__device__ inline uint4 without(const uint4& chunk, uint32 bits, Element) {
  constexpr int kBits = 8 * static_cast<int>(sizeof(Element));
  constexpr int kPerWord = 32 / kBits;
  constexpr uint32 kOnes = kBits == 32 ? 0xffffffffu : (1u << (kBits % 32)) - 1;
  if (bits == 0) return chunk;
  uint32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < kPerChunk<Element>; ++i) {
    if (bits >> i & 1) words[i / kPerWord] &= ~(kOnes << (kBits * (i % kPerWord)));
  }
  return {words[0], words[1], words[2], words[3]};
}

template <typename Half>
__device__ inline void widen_chunk(const uint4& chunk, float (&values)[8], Half) {
  const uint32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = ptx::widen_half(words[i] & 0xffffu, Half{});
    values[2 * i + 1] = ptx::widen_half(words[i] >> 16, Half{});
  }
}

__device__ inline void widen_chunk(const uint4& chunk, float (&values)[4], float) {
  values[0] = ptx::float_of_bits(chunk.x);
  values[1] = ptx::float_of_bits(chunk.y);
  values[2] = ptx::float_of_bits(chunk.z);
  values[3] = ptx::float_of_bits(chunk.w);
}

// values rounded to nearest even.
template <typename Half>
__device__ inline uint4 narrow_chunk(const float (&values)[8], Half) {
  return {ptx::pack_halves(values[0], values[1], Half{}),
          ptx::pack_halves(values[2], values[3], Half{}),
          ptx::pack_halves(values[4], values[5], Half{}),
          ptx::pack_halves(values[6], values[7], Half{})};
}

__device__ inline uint4 narrow_chunk(const float (&values)[4], float) {
  return {ptx::float_bits(values[0]), ptx::float_bits(values[1]), ptx::float_bits(values[2]),
          ptx::float_bits(values[3])};
}

// kCount floats, zeros from `count` on. `aligned`: `from` is a multiple of 16 bytes.
template <int kCount>
__device__ inline void load_floats(const float* from, int count, bool aligned,
                                   float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const uint4 chunk = load_chunk(from + i, count - i, aligned);
    values[i] = ptx::float_of_bits(chunk.x);
    values[i + 1] = ptx::float_of_bits(chunk.y);
    values[i + 2] = ptx::float_of_bits(chunk.z);
    values[i + 3] = ptx::float_of_bits(chunk.w);
  }
}

}  // namespace ftrt
