// What the arithmetic units and the memory of this machine can do at most, to compare kernels with.
#pragma once

#include <cstdint>
#include <string>

namespace ftrt {

// Operations a second, a multiplication and an addition counting as two, of `threads` threads of
// its own that multiply in registers for `seconds` with the instructions that the kernels of the
// chosen level use:
//   "int8", "bf16", "fp32"   by the operands' type;
//   "read"                   bytes a second read from 512 MB instead.
// Throws std::invalid_argument for another kind, for "bf16" where the level has no such product,
// and unless threads is 1 to 1024 and seconds above 0.
double measure_ceiling(const std::string& kind, int64_t threads, double seconds);

}  // namespace ftrt
