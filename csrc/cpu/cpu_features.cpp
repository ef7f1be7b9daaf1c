#include "ftrt/cpu_features.h"

#include <atomic>
#include <cstdint>
#include <stdexcept>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define FTRT_X86 1
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ftrt {
namespace {

#ifdef FTRT_X86

// XCR0: which register states the OS saves and restores (Intel SDM volume 1, 13.3).
uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives a process the 8 KB of tile state only when it asks (arch_prctl(2),
// ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA); without, the first tile instruction kills it.
[[maybe_unused]] bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool bit(uint32_t word, int index) { return ((word >> index) & 1u) != 0; }

CpuFeatures detect() {
  CpuFeatures features;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27))
    return features;  // no OSXSAVE: xgetbv would fault
  const bool fma = bit(c, 12);
  const uint64_t saved = xcr0();
  const bool ymm = (saved & 0x6) == 0x6;
  const bool zmm = ymm && (saved & 0xe0) == 0xe0;
  [[maybe_unused]] const bool saves_tiles = (saved & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  features.avx2 = ymm && fma && bit(b, 5);
  features.avx512 = zmm && features.avx2 && bit(b, 16) && bit(b, 30) && bit(b, 31);
  features.avx512_vnni = features.avx512 && bit(c, 11);
#ifdef FTRT_EMULATE_AMX
  features.amx_bf16 = features.amx_int8 = true;  // see amx_tiles.h
#else
  const bool tiles = saves_tiles && bit(d, 24) && may_use_tiles();
  features.amx_bf16 = tiles && bit(d, 22);
  features.amx_int8 = tiles && bit(d, 25);
#endif
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) features.avx512_bf16 = features.avx512 && bit(a, 5);
  return features;
}

#else

CpuFeatures detect() { return {}; }

#endif

bool can_run(Isa isa) {
  const CpuFeatures& cpu = cpu_features();
  switch (isa) {
    case Isa::kAmx:
      return cpu.amx_int8 && cpu.amx_bf16 && cpu.avx512_vnni && cpu.avx512_bf16;
    case Isa::kAvx512Bf16:
      return cpu.avx512_vnni && cpu.avx512_bf16;
    case Isa::kAvx512Vnni:
      return cpu.avx512_vnni;
    case Isa::kAvx512:
      return cpu.avx512;
    case Isa::kAvx2:
      return cpu.avx2;
    default:
      return true;
  }
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{usable_isas().back()};
  return isa;
}

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (const Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

std::vector<Isa> built_isas() {
  return {
      Isa::kPortable,
#ifdef FTRT_BUILD_AVX2
      Isa::kAvx2,
#endif
#ifdef FTRT_BUILD_AVX512
      Isa::kAvx512,
#endif
#ifdef FTRT_BUILD_AVX512_VNNI
      Isa::kAvx512Vnni,
#endif
#ifdef FTRT_BUILD_AVX512_BF16
      Isa::kAvx512Bf16,
#endif
#ifdef FTRT_BUILD_AMX
      Isa::kAmx,
#endif
  };
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> usable;
  for (const Isa isa : built_isas()) {
    if (can_run(isa)) usable.push_back(isa);
  }
  return usable;
}

Isa chosen_isa() { return chosen().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) {
  for (const Isa isa : usable_isas()) {
    if (name == isa_name(isa)) {
      chosen().store(isa, std::memory_order_relaxed);
      return;
    }
  }
  throw std::invalid_argument("must be built and run on this CPU; got '" + name + "', built: " +
                              names(built_isas()) + ", usable here: " + names(usable_isas()));
}

}  // namespace ftrt
