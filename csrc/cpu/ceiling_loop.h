// Multiplying in registers, as fast as an instruction set's `Dot` (simd_*.h, dots_*.h) goes. The
// rules of gemm_tile.h hold.
#pragma once

#include <cstdint>
#include <cstring>

#include "gemm.h"

namespace ftrt::cpu {
namespace {

// Makes the compiler believe that a vector register changes here.
template <class Vector>
inline __attribute__((always_inline)) void touch(Vector& vector) {
#if defined(__x86_64__) || defined(__i386__)
  __asm__ volatile("" : "+v"(vector));
#elif defined(__aarch64__)
  __asm__ volatile("" : "+w"(vector));
#else
  __asm__ volatile("" : "+m"(vector));
#endif
}

// Sums that do not wait for each other: more than latency times throughput of any dot product, and
// few enough for 16 registers.
inline constexpr int kCeilingSums = 12;

// Returns the number of operations.
template <class Dot>
int64_t ceiling_loop(int64_t iterations) {
  alignas(64) uint8_t operands[64];
  std::memset(operands, 0x3f, sizeof(operands));
  typename Dot::Lanes a = Dot::broadcast(operands);
  typename Dot::Lanes b = Dot::load_right(operands);
  touch(b);
  typename Dot::Sum sum[kCeilingSums] = {};
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int s = 0; s < kCeilingSums; ++s) {
      touch(a);
      sum[s] = Dot::dot(sum[s], a, b);
    }
  }
#pragma GCC unroll 16
  for (int s = 0; s < kCeilingSums; ++s) touch(sum[s]);
  return iterations * kCeilingSums * Dot::kWidth * lane_depth(Dot::kKind) * 2;
}

}  // namespace
}  // namespace ftrt::cpu
