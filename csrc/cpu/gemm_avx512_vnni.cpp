// Compiled with the flags of AVX512 and -mavx512vnni.
#include "ceiling_loop.h"
#include "dots_avx512_vnni.h"
#include "gemm_block.h"
#include "quantize_rows.h"

namespace ftrt::cpu {
namespace {

using BlockF32 = BlockGemm<Avx512, Avx512F32, Avx512F32, Avx512F32, 14, 2>;
using BlockS8 = BlockGemm<Avx512, Avx512Vnni, Avx512F32, Avx512F32, 14, 2>;
constexpr GemmKernel kF32 = {14, &BlockF32::compute};
constexpr GemmKernel kS8 = {14, &BlockS8::compute};

}  // namespace

const KernelSet kAvx512VnniKernels = {
    &kS8,    Kind::kS8x4, nullptr, &kF32, &quantize_rows, &ceiling_loop<Avx512Vnni>,
    nullptr, &ceiling_loop<Avx512F32>};

}  // namespace ftrt::cpu
