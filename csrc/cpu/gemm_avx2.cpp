// Compiled with -mavx2 -mfma.
#include "ceiling_loop.h"
#include "gemm_block.h"
#include "quantize_rows.h"
#include "simd_avx2.h"

namespace ftrt::cpu {
namespace {

// 16 registers of eight lanes: 6 x 2 sums, 2 of b, 1 of a, 1 product.
using BlockF32 = BlockGemm<Avx2, Avx2F32, Avx2F32, Avx2F32, 6, 1>;
using BlockS16 = BlockGemm<Avx2, Avx2S16, Avx2F32, Avx2F32, 6, 1>;
constexpr GemmKernel kF32 = {6, &BlockF32::compute};
constexpr GemmKernel kS16 = {6, &BlockS16::compute};

}  // namespace

const KernelSet kAvx2Kernels = {
    &kS16,   Kind::kS16x2, nullptr, &kF32, &quantize_rows, &ceiling_loop<Avx2S16>,
    nullptr, &ceiling_loop<Avx2F32>};

}  // namespace ftrt::cpu
