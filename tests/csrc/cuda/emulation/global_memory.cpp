#include "global_memory.h"

#include <cstdio>

#include "block.h"
#include "emulation.h"

namespace emulation {

GlobalMemory global;

void check_global(const void* address, unsigned long bytes, bool write, const char* what) {
  const auto begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
  for (int i = 0; i < global.count; ++i) {
    const Range& range = global.ranges[i];
    if (write ? begin >= range.first && end <= range.last
              : begin >= range.begin && end <= range.end) {
      return;
    }
  }
  if (global.is_open) return;
  // the nearest tensor
  const Range* nearest = nullptr;
  uintptr_t distance = UINTPTR_MAX;
  for (int i = 0; i < global.count; ++i) {
    const Range& range = global.ranges[i];
    const uintptr_t low = write ? range.first : range.begin, high = write ? range.last : range.end;
    const uintptr_t gap = begin < low ? low - begin : end > high ? end - high : 0;
    if (gap < distance) {
      distance = gap;
      nearest = &range;
    }
  }
  if (nearest == nullptr) fail("%s of %lu bytes: there is no tensor", what, bytes);
  fail("%s of %lu bytes outside of every tensor: bytes %lld to %lld of the %lld of argument %ld",
       what, bytes, static_cast<long long>(begin - nearest->first),
       static_cast<long long>(end - nearest->first) - 1,
       static_cast<long long>(nearest->last - nearest->first),
       static_cast<long>(nearest - global.ranges));
}

void add_global(float* address, float value, const Call& call) {
  const char* what = describe(site_of(call));
  if (reinterpret_cast<uintptr_t>(address) % sizeof(float) != 0) {
    fail("%s: the address must be aligned to 4; got %p", what, static_cast<void*>(address));
  }
  check_global(address, sizeof(float), true, what);
  *address += value;  // blocks run one after the other
}

namespace {

// Where an instrumented access lies: "{pc 1f3}" is an offset in the kernel's shared object, which
// the caller of the launch turns into a line.
void check(uintptr_t address, unsigned long bytes, bool write, const void* from) {
  const void* place = reinterpret_cast<const void*>(address);
  if (block.current->fiber.has_on_stack(place)) return;
  if (!write && address >= global.image && address + bytes <= global.image_end) return;
  char what[64];
  std::snprintf(what, sizeof(what), "%s at {pc %lx}", write ? "write" : "read",
                static_cast<unsigned long>(reinterpret_cast<uintptr_t>(from) - global.image));
  check_global(place, bytes, write, what);
}

}  // namespace
}  // namespace emulation

// What a compiler calls at each access to memory under -fsanitize=kernel-address.
extern "C" {
#define ACCESS(bytes)                                                            \
  void __asan_load##bytes##_noabort(uintptr_t address) {                         \
    emulation::check(address, bytes, false, __builtin_return_address(0));        \
  }                                                                              \
  void __asan_store##bytes##_noabort(uintptr_t address) {                        \
    emulation::check(address, bytes, true, __builtin_return_address(0));         \
  }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void __asan_loadN_noabort(uintptr_t address, unsigned long bytes) {
  emulation::check(address, bytes, false, __builtin_return_address(0));
}
void __asan_storeN_noabort(uintptr_t address, unsigned long bytes) {
  emulation::check(address, bytes, true, __builtin_return_address(0));
}
void __asan_handle_no_return() {}
}
