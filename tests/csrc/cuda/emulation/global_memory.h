// Which global memory a kernel may touch.
#pragma once

#include <cstdint>

namespace emulation {

// A tensor: the bytes of its storage, which may be read, and of those the ones from its first to
// its last element, which may be written.
struct Range {
  uintptr_t begin, end;
  uintptr_t first, last;  // [first, last)
};

struct GlobalMemory {
  const Range* ranges;
  int count;
  bool is_open;                // there are pointers of which nothing is known
  uintptr_t image, image_end;  // the kernel's own constants
};

extern GlobalMemory global;

// A fault unless the bytes lie in one tensor.
void check_global(const void* address, unsigned long bytes, bool write, const char* what);

}  // namespace emulation
