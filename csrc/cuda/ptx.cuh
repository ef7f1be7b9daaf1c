// All inline PTX of ftrt, and every way a kernel may touch shared memory.
//
// Kernels use shared memory through the 32-bit addresses below and never through a pointer, so that
// the same sources run against tests/csrc/cuda/emulation, which replaces this header: it checks
// each access for races and for bytes nobody wrote.
#pragma once

#include "types.cuh"

namespace ftrt::ptx {

// ---- shared memory ----

// Address of the block's dynamic shared memory, 16-byte aligned.
__device__ inline uint32 shared_base() {
  extern __shared__ __align__(1024) unsigned char ftrt_shared[];
  return static_cast<uint32>(__cvta_generic_to_shared(ftrt_shared));
}

__device__ inline uint32 load_shared_32(uint32 address) {
  uint32 value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

__device__ inline float load_shared_f32(uint32 address) {
  return __uint_as_float(load_shared_32(address));
}

__device__ inline uint2 load_shared_64(uint32 address) {
  uint2 value;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
               : "=r"(value.x), "=r"(value.y)
               : "r"(address)
               : "memory");
  return value;
}

__device__ inline uint4 load_shared_128(uint32 address) {
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

__device__ inline void store_shared_16(uint32 address, uint32 low_half) {
  asm volatile("st.shared.b16 [%0], %1;"
               :
               : "r"(address), "h"(static_cast<unsigned short>(low_half))
               : "memory");
}

__device__ inline void store_shared_32(uint32 address, uint32 value) {
  asm volatile("st.shared.b32 [%0], %1;" : : "r"(address), "r"(value) : "memory");
}

__device__ inline void store_shared_f32(uint32 address, float value) {
  store_shared_32(address, __float_as_uint(value));
}

__device__ inline void store_shared_64(uint32 address, uint2 value) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};"
               :
               : "r"(address), "r"(value.x), "r"(value.y)
               : "memory");
}

__device__ inline void store_shared_128(uint32 address, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(address), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

// ---- asynchronous copies, sm_80 ----

// Copies 16 bytes from global to shared memory, both 16-byte aligned; bytes from `bytes` on (0 to
// 16) are zeros and not read. They are there for the issuing thread after wait_copies, for the
// block after a barrier behind that.
__device__ inline void copy_async_16(uint32 address, const void* source, uint32 bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(__cvta_generic_to_global(source)), "r"(bytes)
               : "memory");
}

// Ends the group that the copies issued since the last call belong to; it may be empty.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits until at most `kPending` of this thread's groups, the newest, are not there yet.
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// ---- matrices ----

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
// Register i of lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i.
__device__ inline uint4 load_matrices(uint32 address) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(address)
               : "memory");
  return m;
}

// As load_matrices, each matrix transposed.
__device__ inline uint4 load_matrices_transposed(uint32 address) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(address)
               : "memory");
  return m;
}

// c (16 x 8, int32) += a (16 x 32, int8) · b (32 x 8, int8). With g = lane / 4 and t = lane % 4:
//   a.x row g, a.y row g + 8, columns 4t..4t+3;   a.z, a.w the same rows, columns 16+4t..16+4t+3
//   b0 column g, rows 4t..4t+3;   b1 column g, rows 16+4t..16+4t+3
//   c[0], c[1] row g, columns 2t, 2t+1;   c[2], c[3] row g + 8
__device__ inline void multiply_int8(int (&c)[4], const uint4& a, uint32 b0, uint32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// c (16 x 8, float) += a (16 x 16) · b (16 x 8), elements of type Half, two a register:
//   a.x row g, a.y row g + 8, columns 2t, 2t+1;   a.z, a.w the same rows, columns 2t+8, 2t+9
//   b0 column g, rows 2t, 2t+1;   b1 column g, rows 2t+8, 2t+9;   c as above
__device__ inline void multiply(float (&c)[4], const uint4& a, uint32 b0, uint32 b1, BFloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

__device__ inline void multiply(float (&c)[4], const uint4& a, uint32 b0, uint32 b1, Float16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// ---- registers ----

// The same value, which the compiler takes for a new one made here: what depends on it is not
// computed before, and so needs no register until then.
__device__ inline int hold(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Byte i of the result is byte number (selector >> 4 i & 7) of low (0 to 3) and high (4 to 7).
__device__ inline uint32 permute_bytes(uint32 low, uint32 high, uint32 selector) {
  return __byte_perm(low, high, selector);
}

// Two floats rounded to nearest even, `low` in the low half.
__device__ inline uint32 pack_halves(float low, float high, BFloat16) {
  uint32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ inline uint32 pack_halves(float low, float high, Float16) {
  unsigned short first, second;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(first) : "f"(low));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(second) : "f"(high));
  return static_cast<uint32>(first) | static_cast<uint32>(second) << 16;
}

__device__ inline float widen_half(uint32 bits, Float16) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<unsigned short>(bits)));
  return value;
}

__device__ inline float widen_half(uint32 bits, BFloat16) {
  return __uint_as_float(bits << 16);
}

// Rounded to the nearest integer, halves to even; saturates, NaN gives 0.
__device__ inline int round_to_int(float value) { return __float2int_rn(value); }

// Rounded as round_to_int, by one addition, which is faster: the low byte of the result is that of
// the integer. |value| is below 2^22; 1.5 · 2^23 puts the last binary place at 1.
__device__ inline uint32 round_to_byte(float value) {
  return __float_as_uint(__fadd_rn(value, 12582912.0f));
}

// Four int8 as four halves, exactly; bytes 0 and 1 in the first register, no conversions needed.
__device__ inline uint2 widen_int8(uint32 bytes, Float16) {
  // 0x6400 + u is 1024 + u; with u = byte + 128, 1152 is too much
  const uint32 shifted = bytes ^ 0x80808080u;
  uint2 halves = {permute_bytes(shifted, 0x64646464u, 0x4140),
                  permute_bytes(shifted, 0x64646464u, 0x4342)};
  asm("sub.rn.f16x2 %0, %0, %1;" : "+r"(halves.x) : "r"(0x64806480u));
  asm("sub.rn.f16x2 %0, %0, %1;" : "+r"(halves.y) : "r"(0x64806480u));
  return halves;
}

__device__ inline uint2 widen_int8(uint32 bytes, BFloat16) {
  // 0x4300 + u is 128 + u for 7 bits; with the sign's bit alone, 0x4300 is 128 and 0x4380 is 256
  const uint32 low = bytes & 0x7f7f7f7fu;
  const uint32 sign = bytes & 0x80808080u;
  uint2 halves = {permute_bytes(low, 0x43434343u, 0x4140),
                  permute_bytes(low, 0x43434343u, 0x4342)};
  const uint2 offsets = {permute_bytes(sign, 0x43434343u, 0x4140),
                         permute_bytes(sign, 0x43434343u, 0x4342)};
  constexpr uint32 kMinusOnes = 0xbf80bf80u;
  asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(halves.x) : "r"(offsets.x), "r"(kMinusOnes));
  asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(halves.y) : "r"(offsets.y), "r"(kMinusOnes));
  return halves;
}

__device__ inline uint32 float_bits(float value) { return __float_as_uint(value); }
__device__ inline float float_of_bits(uint32 bits) { return __uint_as_float(bits); }
__device__ inline float exponential(float value) { return expf(value); }
__device__ inline float square_root(float value) { return __fsqrt_rn(value); }

// ---- global memory ----

// *address += value, in no fixed order among threads.
__device__ inline void add_global(float* address, float value) {
  asm volatile("red.global.add.f32 [%0], %1;"
               :
               : "l"(__cvta_generic_to_global(address)), "f"(value)
               : "memory");
}

// ---- threads ----

// Waits for the whole block, and orders its shared and global accesses.
__device__ inline void barrier() { __syncthreads(); }

// Waits for the warp, and orders its shared accesses.
__device__ inline void warp_barrier() { __syncwarp(); }

// The value of lane `lane ^ mask`; all 32 lanes call it.
__device__ inline float exchange(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

__device__ inline uint32 thread_index() { return threadIdx.x; }
__device__ inline uint32 block_index_x() { return blockIdx.x; }
__device__ inline uint32 block_index_y() { return blockIdx.y; }
__device__ inline uint32 block_count_x() { return gridDim.x; }
__device__ inline uint32 block_count_y() { return gridDim.y; }

}  // namespace ftrt::ptx
