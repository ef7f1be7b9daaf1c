// KL(p ‖ q) of each row of two matrices of logits, which are read once.
//
// p = softmax(u) and q = softmax(v), where u and v are the logits times `inverse`, one over the
// temperature:
//
//   Σ_j p_j (log p_j − log q_j) = Σ_j e^u_j (u_j − v_j) / Σ_j e^u_j − lse(u) + lse(v)
//
// Sums are float32 and relative to the largest logit so far, by which they are rescaled when a
// larger one comes (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867, algorithm 3).
//
// Grid (rows), 256 threads, 256 bytes of shared memory. FTRT_P, FTRT_Q: types of the logits.
#include "divergence.cuh"

namespace ftrt {

constexpr int kWarps = kThreads / 32;
constexpr uint32 kSumsBytes = 32;
// Smaller than any logit, and finite: the difference of two is 0, and no NaN.
constexpr float kLowest = -3.0e38f;

struct Sums {
  float p_most = kLowest, p_sum = 0.0f;  // largest u; Σ e^(u − p_most)
  float q_most = kLowest, q_sum = 0.0f;  // of v
  float gap = 0.0f;                      // Σ e^(u − p_most) (u − v)

  __device__ void add(const float (&u)[kPerLoad], const float (&v)[kPerLoad], int count) {
    float p_now = p_most, q_now = q_most;
#pragma unroll
    for (int i = 0; i < kPerLoad; ++i) {
      if (i < count) p_now = fmaxf(p_now, u[i]), q_now = fmaxf(q_now, v[i]);
    }
    rescale(p_now, q_now);
#pragma unroll
    for (int i = 0; i < kPerLoad; ++i) {
      if (i >= count) continue;
      const float weight = ptx::exponential(u[i] - p_most);
      p_sum += weight;
      gap += weight * (u[i] - v[i]);
      q_sum += ptx::exponential(v[i] - q_most);
    }
  }

  __device__ void merge(Sums other) {
    const float p_now = fmaxf(p_most, other.p_most), q_now = fmaxf(q_most, other.q_most);
    rescale(p_now, q_now);
    other.rescale(p_now, q_now);
    p_sum += other.p_sum, q_sum += other.q_sum, gap += other.gap;
  }

  __device__ void rescale(float p_now, float q_now) {
    const float p_factor = ptx::exponential(p_most - p_now);
    p_sum *= p_factor, gap *= p_factor, q_sum *= ptx::exponential(q_most - q_now);
    p_most = p_now, q_most = q_now;
  }

  __device__ Sums exchanged(int mask) const {
    return {ptx::exchange(p_most, mask), ptx::exchange(p_sum, mask), ptx::exchange(q_most, mask),
            ptx::exchange(q_sum, mask), ptx::exchange(gap, mask)};
  }

  __device__ void store(uint32 address) const {
    ptx::store_shared_128(address, {ptx::float_bits(p_most), ptx::float_bits(p_sum),
                                    ptx::float_bits(q_most), ptx::float_bits(q_sum)});
    ptx::store_shared_f32(address + 16, gap);
  }
};

__device__ inline Sums load_sums(uint32 address) {
  const uint4 four = ptx::load_shared_128(address);
  return {ptx::float_of_bits(four.x), ptx::float_of_bits(four.y), ptx::float_of_bits(four.z),
          ptx::float_of_bits(four.w), ptx::load_shared_f32(address + 16)};
}

// The sums of the block, in a fixed order; thread 0 gets them.
__device__ inline Sums block_sums(Sums sums) {
  const uint32 shared = ptx::shared_base(), thread = ptx::thread_index();
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sums.merge(sums.exchanged(mask));
  if (thread % 32 == 0) sums.store(shared + thread / 32 * kSumsBytes);
  ptx::barrier();
  if (thread != 0) return sums;
  for (int warp = 1; warp < kWarps; ++warp) sums.merge(load_sums(shared + warp * kSumsBytes));
  return sums;
}

}  // namespace ftrt

extern "C" __global__ void __launch_bounds__(256)
    row_divergence(const ftrt::FTRT_P* p,  // (rows, p_stride) logits
                   long long p_stride,
                   const ftrt::FTRT_Q* q,  // (rows, q_stride) logits
                   long long q_stride, int columns, float inverse,
                   float* statistics) {  // (rows, 3), written: lse(u), lse(v), the divergence
  using namespace ftrt;
  const int64 row = ptx::block_index_x();
  const bool p_aligned = is_aligned(p, p_stride, 16), q_aligned = is_aligned(q, q_stride, 16);
  Sums sums;
  for (int first = ptx::thread_index() * kPerLoad; first < columns; first += kThreads * kPerLoad) {
    float u[kPerLoad], v[kPerLoad];
    load_logits(p + row * p_stride + first, columns - first, p_aligned, u);
    load_logits(q + row * q_stride + first, columns - first, q_aligned, v);
#pragma unroll
    for (int i = 0; i < kPerLoad; ++i) u[i] *= inverse, v[i] *= inverse;
    sums.add(u, v, columns - first);
  }
  sums = block_sums(sums);
  if (ptx::thread_index() != 0) return;
  const float p_lse = sums.p_most + logf(sums.p_sum), q_lse = sums.q_most + logf(sums.q_sum);
  float* written = statistics + 3 * row;
  written[0] = p_lse;
  written[1] = q_lse;
  written[2] = sums.gap / sums.p_sum - p_lse + q_lse;
}
