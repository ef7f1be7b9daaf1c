// Compiled for the compiler's default target: SSE2 on x86-64, NEON on ARM.
#include "int8_gemm_kernel.h"

namespace ftrt::cpu {

#if defined(__aarch64__)
// 32 vector registers: 6 x 4 sums, 4 of b, 1 of a.
using Tile = Int8GemmTile<4, 6, 4>;
inline constexpr int64_t kTileRows = 6;
#else
// 16 vector registers: 3 x 4 sums, 1 of a; b comes from memory.
using Tile = Int8GemmTile<4, 3, 4>;
inline constexpr int64_t kTileRows = 3;
#endif

const Int8GemmKernel kInt8GemmPortable = {kTileRows, Tile::kCols, &Tile::compute};

}  // namespace ftrt::cpu
