// Compiled with -mavx2 -mfma.
#include "int8_gemm_kernel.h"

namespace ftrt::cpu {

// 16 registers: 6 x 2 sums, 2 of b, 1 of a. 12 independent sums cover 2 FMA ports x 5 cycles of
// latency.
using Tile = Int8GemmTile<8, 6, 2>;

const Int8GemmKernel kInt8GemmAvx2 = {6, Tile::kCols, &Tile::compute};

}  // namespace ftrt::cpu
