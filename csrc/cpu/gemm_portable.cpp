// Compiled for the compiler's default target: the instruction set that any CPU of the architecture
// has.
#include "ceiling_loop.h"
#include "gemm_block.h"
#include "quantize_rows.h"
#include "simd_portable.h"

namespace ftrt::cpu {
namespace {

// 16 registers of four floats: 2 x 4 sums, 4 of b, 1 of a.
using Block32 = BlockGemm<Portable, PortableF32, PortableF32, PortableF32, 2, 1>;
constexpr GemmKernel kF32 = {2, &Block32::compute};

}  // namespace

// int8 products in float32: whole numbers, exact within a slice of 512.
const KernelSet kPortableKernels = {
    &kF32,   Kind::kF32, nullptr, &kF32, &quantize_rows, &ceiling_loop<PortableF32>,
    nullptr, &ceiling_loop<PortableF32>};

}  // namespace ftrt::cpu
