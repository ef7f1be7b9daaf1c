// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx2 -mfma.
#include "ceiling_loop.h"
#include "gemm_block.h"
#include "quantize_rows.h"
#include "simd_avx512.h"

namespace ftrt::cpu {
namespace {

// 32 registers of sixteen lanes: 14 x 2 sums, 2 of b, 1 of a (and a product).
using BlockF32 = BlockGemm<Avx512, Avx512F32, Avx512F32, Avx512F32, 14, 2>;
using BlockS16 = BlockGemm<Avx512, Avx512S16, Avx512F32, Avx512F32, 14, 2>;
constexpr GemmKernel kF32 = {14, &BlockF32::compute};
constexpr GemmKernel kS16 = {14, &BlockS16::compute};

}  // namespace

const KernelSet kAvx512Kernels = {
    &kS16,   Kind::kS16x2, nullptr, &kF32, &quantize_rows, &ceiling_loop<Avx512S16>,
    nullptr, &ceiling_loop<Avx512F32>};

}  // namespace ftrt::cpu
