// Compiled with the flags of AVX512-VNNI and -mavx512bf16.
#include "ceiling_loop.h"
#include "dots_avx512_bf16.h"
#include "dots_avx512_vnni.h"
#include "gemm_block.h"
#include "quantize_rows.h"

namespace ftrt::cpu {
namespace {

using BlockF32 = BlockGemm<Avx512, Avx512F32, Avx512F32, Avx512Bf16, 14, 2>;
using BlockS8 = BlockGemm<Avx512, Avx512Vnni, Avx512F32, Avx512Bf16, 14, 2>;
using BlockBf16 = BlockGemm<Avx512, Avx512Bf16, Avx512F32, Avx512Bf16, 14, 2>;
constexpr GemmKernel kF32 = {14, &BlockF32::compute};
constexpr GemmKernel kS8 = {14, &BlockS8::compute};
constexpr GemmKernel kBf16 = {14, &BlockBf16::compute};

}  // namespace

const KernelSet kAvx512Bf16Kernels = {
    &kS8, Kind::kS8x4, &kBf16, &kF32, &quantize_rows, &ceiling_loop<Avx512Vnni>,
    &ceiling_loop<Avx512Bf16>, &ceiling_loop<Avx512F32>};

}  // namespace ftrt::cpu
