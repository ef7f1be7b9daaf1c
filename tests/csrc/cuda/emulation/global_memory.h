// Which global memory a kernel may touch, and who touched what of it.
#pragma once

#include <cstdint>

#include "emulation.h"

namespace emulation {

// An argument: the bytes of its storage, which may be read, and those from its first to its last
// element, which may be written if the parameter is not a pointer to const. As in emulated.py.
struct Tensor {
  uintptr_t begin, end;
  uintptr_t first, last;  // [first, last)
  int argument;           // its number
  int is_written;
};

struct GlobalMemory {
  const Tensor* tensors;
  int count;
  bool has_addresses;
  uintptr_t image, image_end;
};

// What the next launch has. Storages that it may write get a shadow.
void open_global(const GlobalMemory& memory);

enum class Access { kRead, kWrite, kAdd };

// A fault unless the bytes lie in one tensor and the access is in order with all others.
void check_global(const void* address, unsigned long bytes, Access access, const Call& call);

}  // namespace emulation
