// Gradient of row_divergence with respect to the logits of one side, times that of the divergence:
//
//   FTRT_SIDE 0, p:  grad · inverse · p_j ((u_j − lse(u)) − (v_j − lse(v)) − KL)
//   FTRT_SIDE 1, q:  grad · inverse · (q_j − p_j)
//
// with the names of row_divergence.cu, whose statistics spare a pass over the logits.
//
// Grid (rows), 256 threads, no shared memory. FTRT_P, FTRT_Q: types of the logits; the gradient has
// that of its side.
#include "divergence.cuh"

namespace ftrt {

constexpr bool kIsOfP = FTRT_SIDE == 0;

template <bool kFirst, typename First, typename Second>
struct Choice {
  using Type = First;
};
template <typename First, typename Second>
struct Choice<false, First, Second> {
  using Type = Second;
};
using Gradient = Choice<kIsOfP, FTRT_P, FTRT_Q>::Type;

}  // namespace ftrt

extern "C" __global__ void __launch_bounds__(256)
    row_divergence_gradient(const ftrt::FTRT_P* p,  // (rows, p_stride) logits
                            long long p_stride,
                            const ftrt::FTRT_Q* q,  // (rows, q_stride) logits
                            long long q_stride, int columns, float inverse,
                            const float* statistics,   // (rows, 3), of row_divergence
                            const float* grad,         // (rows), of the divergences
                            ftrt::Gradient* gradient,  // (rows, gradient_stride), written
                            long long gradient_stride) {
  using namespace ftrt;
  const int64 row = ptx::block_index_x();
  const float p_lse = statistics[3 * row], q_lse = statistics[3 * row + 1];
  const float divergence = statistics[3 * row + 2], factor = grad[row] * inverse;
  const bool p_aligned = is_aligned(p, p_stride, 16), q_aligned = is_aligned(q, q_stride, 16);
  const bool is_out_aligned = is_aligned(gradient, gradient_stride, 16);
  for (int first = ptx::thread_index() * kPerLoad; first < columns; first += kThreads * kPerLoad) {
    float u[kPerLoad], v[kPerLoad], slope[kPerLoad];
    load_logits(p + row * p_stride + first, columns - first, p_aligned, u);
    load_logits(q + row * q_stride + first, columns - first, q_aligned, v);
#pragma unroll
    for (int i = 0; i < kPerLoad; ++i) {
      const float p_log = u[i] * inverse - p_lse, q_log = v[i] * inverse - q_lse;
      const float p_share = ptx::exponential(p_log);
      slope[i] = factor * (kIsOfP ? p_share * (p_log - q_log - divergence)
                                  : ptx::exponential(q_log) - p_share);
    }
    store_logits(gradient + row * gradient_stride + first, columns - first, is_out_aligned, slope);
  }
}
