// Compiled with -mavx512f -mavx512bw -mavx512vl -mfma.
#include "int8_gemm_kernel.h"

namespace ftrt::cpu {

// 32 registers: 14 x 2 sums, 2 of b, 1 of a.
using Tile = Int8GemmTile<16, 14, 2>;

const Int8GemmKernel kInt8GemmAvx512 = {14, Tile::kCols, &Tile::compute};

}  // namespace ftrt::cpu
