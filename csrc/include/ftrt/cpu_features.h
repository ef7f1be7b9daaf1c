// What the CPU can do, what was compiled for it, and which of the two the kernels use.
#pragma once

#include <string>
#include <vector>

namespace ftrt {

// Instruction-set levels the CPU kernels are compiled for, worst first. Each has its own
// translation units.
// A CPU that has one of the levels has those before it.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };

struct CpuFeatures {
  bool avx2 = false;         // AVX2 and FMA, and the OS saves ymm registers
  bool avx512 = false;       // AVX512 F, BW and VL, and the OS saves zmm registers
  bool avx512_vnni = false;  // int8 dot products
  bool avx512_bf16 = false;  // bfloat16 dot products
  bool amx_int8 = false;     // int8 tiles, and the OS lets this process use tile registers
  bool amx_bf16 = false;     // bfloat16 tiles, and the OS lets this process use tile registers
};

const CpuFeatures& cpu_features();

// "portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16" or "amx".
const char* isa_name(Isa isa);

// Levels this build has code for, worst first; kPortable is always there.
std::vector<Isa> built_isas();

// Levels that are built and that this CPU can run, worst first.
std::vector<Isa> usable_isas();

// The level every kernel runs at: the best usable one until set_isa() chose another.
Isa chosen_isa();

// Throws std::invalid_argument, with what is built and what the CPU has, unless `name` is usable
// here.
void set_isa(const std::string& name);

}  // namespace ftrt
