// csrc/cuda/ptx.cuh for the emulation: the same functions, see there for what each does. What the
// 32 lanes of a warp do together waits for all of them; only barriers order shared memory.
#pragma once

#include "emulation.h"
#include "types.cuh"

namespace ftrt::ptx {

using emulation::Where;

// ---- shared memory ----

inline uint32 shared_base() { return emulation::shared_base(); }

inline uint32 load_shared_32(uint32 address, Where where = {}) {
  uint32 value;
  emulation::load_shared(address, &value, 4, {"load_shared_32", where});
  return value;
}

inline float load_shared_f32(uint32 address, Where where = {}) {
  float value;
  emulation::load_shared(address, &value, 4, {"load_shared_f32", where});
  return value;
}

inline uint2 load_shared_64(uint32 address, Where where = {}) {
  uint2 value;
  emulation::load_shared(address, &value, 8, {"load_shared_64", where});
  return value;
}

inline uint4 load_shared_128(uint32 address, Where where = {}) {
  uint4 value;
  emulation::load_shared(address, &value, 16, {"load_shared_128", where});
  return value;
}

inline void store_shared_16(uint32 address, uint32 low_half, Where where = {}) {
  const uint16 value = static_cast<uint16>(low_half);
  emulation::store_shared(address, &value, 2, {"store_shared_16", where});
}

inline void store_shared_32(uint32 address, uint32 value, Where where = {}) {
  emulation::store_shared(address, &value, 4, {"store_shared_32", where});
}

inline void store_shared_f32(uint32 address, float value, Where where = {}) {
  emulation::store_shared(address, &value, 4, {"store_shared_f32", where});
}

inline void store_shared_64(uint32 address, uint2 value, Where where = {}) {
  emulation::store_shared(address, &value, 8, {"store_shared_64", where});
}

inline void store_shared_128(uint32 address, uint4 value, Where where = {}) {
  emulation::store_shared(address, &value, 16, {"store_shared_128", where});
}

// ---- asynchronous copies ----

inline void copy_async_16(uint32 address, const void* source, uint32 bytes, Where where = {}) {
  emulation::copy_async(address, source, bytes, {"copy_async_16", where});
}

inline void commit_copies() { emulation::commit_copies(); }

template <int kPending>
inline void wait_copies(Where where = {}) {
  emulation::wait_copies(kPending, {"wait_copies", where});
}

// ---- matrices ----

inline uint4 load_matrices(uint32 address, Where where = {}) {
  uint32 out[4];
  emulation::load_matrices(address, out, false, {"load_matrices", where});
  return {out[0], out[1], out[2], out[3]};
}

inline uint4 load_matrices_transposed(uint32 address, Where where = {}) {
  uint32 out[4];
  emulation::load_matrices(address, out, true, {"load_matrices_transposed", where});
  return {out[0], out[1], out[2], out[3]};
}

inline void multiply_int8(int (&c)[4], const uint4& a, uint32 b0, uint32 b1, Where where = {}) {
  emulation::multiply(emulation::Product::kInt8, c, {a.x, a.y, a.z, a.w}, {b0, b1},
                      {"multiply_int8", where});
}

inline void multiply(float (&c)[4], const uint4& a, uint32 b0, uint32 b1, BFloat16,
                     Where where = {}) {
  emulation::multiply(emulation::Product::kBFloat16, c, {a.x, a.y, a.z, a.w}, {b0, b1},
                      {"multiply(BFloat16)", where});
}

inline void multiply(float (&c)[4], const uint4& a, uint32 b0, uint32 b1, Float16,
                     Where where = {}) {
  emulation::multiply(emulation::Product::kFloat16, c, {a.x, a.y, a.z, a.w}, {b0, b1},
                      {"multiply(Float16)", where});
}

// ---- registers ----

inline int hold(int value) { return value; }

inline uint32 permute_bytes(uint32 low, uint32 high, uint32 selector) {
  return __byte_perm(low, high, selector);
}

inline uint32 pack_halves(float low, float high, BFloat16) {
  return emulation::to_bfloat16(low) | static_cast<uint32>(emulation::to_bfloat16(high)) << 16;
}

inline uint32 pack_halves(float low, float high, Float16) {
  return emulation::to_float16(low) | static_cast<uint32>(emulation::to_float16(high)) << 16;
}

inline float widen_half(uint32 bits, Float16) {
  return emulation::from_float16(static_cast<uint16>(bits));
}

inline float widen_half(uint32 bits, BFloat16) { return __uint_as_float(bits << 16); }

inline int round_to_int(float value) { return __float2int_rn(value); }

inline uint32 round_to_byte(float value) { return __float_as_uint(__fadd_rn(value, 12582912.0f)); }

template <typename Half>
inline uint2 widen_int8(uint32 bytes, Half) {
  const auto byte = [bytes](int i) {
    return static_cast<float>(static_cast<int8>(bytes >> 8 * i));
  };
  return {pack_halves(byte(0), byte(1), Half{}), pack_halves(byte(2), byte(3), Half{})};
}

inline uint32 float_bits(float value) { return __float_as_uint(value); }
inline float float_of_bits(uint32 bits) { return __uint_as_float(bits); }
inline float exponential(float value) { return expf(value); }
inline float square_root(float value) { return sqrtf(value); }

// ---- global memory ----

inline void add_global(float* address, float value, Where where = {}) {
  emulation::add_global(address, value, {"add_global", where});
}

// ---- threads ----

inline void barrier(Where where = {}) { emulation::barrier({"barrier", where}); }
inline void warp_barrier(Where where = {}) { emulation::warp_barrier({"warp_barrier", where}); }

inline float exchange(float value, int mask, Where where = {}) {
  return emulation::exchange(value, mask, {"exchange", where});
}

inline uint32 thread_index() { return emulation::thread_index(); }
inline uint32 block_index_x() { return emulation::block_index(0); }
inline uint32 block_index_y() { return emulation::block_index(1); }
inline uint32 block_count_x() { return emulation::block_count(0); }
inline uint32 block_count_y() { return emulation::block_count(1); }

}  // namespace ftrt::ptx
