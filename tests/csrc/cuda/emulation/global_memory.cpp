#include "global_memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "block.h"
#include "emulation.h"
#include "shadow.h"

namespace emulation {
namespace {

GlobalMemory global;

// By tensor; those of one storage have the same. Without cells if the launch only reads it.
std::vector<Shadow> shadows;
std::vector<std::string> names;

// Memory for cells, which stays for the next launches unless it is much.
Cell* arena = nullptr;
size_t arena_bytes = 0;
constexpr size_t kKeptBytes = 64 << 20;

Cell* cells_for(size_t count) {
  const size_t bytes = count * sizeof(Cell);
  if (bytes > arena_bytes || arena_bytes > kKeptBytes) {
    if (arena != nullptr) munmap(arena, arena_bytes);
    arena_bytes = bytes;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::perror("emulation: shadow of global memory");
      std::abort();
    }
    arena = static_cast<Cell*>(memory);
  }
  return arena;
}

bool holds(const Tensor& tensor, uintptr_t begin, uintptr_t end, bool write) {
  return write ? tensor.is_written && begin >= tensor.first && end <= tensor.last
               : begin >= tensor.begin && end <= tensor.end;
}

[[noreturn]] void fail_outside(uintptr_t begin, uintptr_t end, bool write, const char* what) {
  const Tensor* nearest = nullptr;
  uintptr_t distance = UINTPTR_MAX;
  for (int i = 0; i < global.count; ++i) {
    const Tensor& tensor = global.tensors[i];
    const uintptr_t gap = begin < tensor.first ? tensor.first - begin
                          : end > tensor.last  ? end - tensor.last
                                               : 0;
    if (gap < distance) {
      distance = gap;
      nearest = &tensor;
    }
  }
  constexpr uintptr_t kFar = 1 << 30;
  if (distance > kFar) {
    fail("%s: address %#llx, far from all tensors", what, static_cast<unsigned long long>(begin));
  }
  const auto first = static_cast<long long>(begin - nearest->first);
  if (write && distance == 0 && !nearest->is_written) {
    fail("%s: byte %lld of argument %d, which is a pointer to const", what, first,
         nearest->argument);
  }
  fail("%s: bytes %lld to %lld of argument %d, which has %lld", what, first,
       first + static_cast<long long>(end - begin) - 1, nearest->argument,
       static_cast<long long>(nearest->last - nearest->first));
}

}  // namespace

void open_global(const GlobalMemory& memory) {
  global = memory;
  const auto count = static_cast<size_t>(memory.count);
  std::vector<size_t> offsets(count, SIZE_MAX);
  size_t cells = 0;
  for (size_t i = 0; i < count; ++i) {
    const Tensor& tensor = memory.tensors[i];
    if (!tensor.is_written || offsets[i] != SIZE_MAX) continue;
    for (size_t j = 0; j < count; ++j) {
      if (memory.tensors[j].begin == tensor.begin) offsets[j] = cells;
    }
    cells += tensor.end - tensor.begin;
  }
  Cell* base = cells != 0 ? cells_for(cells) : nullptr;
  names.assign(count, "");
  shadows.assign(count, {nullptr, nullptr, false});
  for (size_t i = 0; i < count; ++i) {
    names[i] = "the storage of argument " + std::to_string(memory.tensors[i].argument);
    if (offsets[i] != SIZE_MAX) shadows[i] = {base + offsets[i], names[i].c_str(), false};
  }
}

void check_global(const void* address, unsigned long bytes, Access access, const Call& call) {
  static int last = 0;  // where the access before this one was
  const bool write = access != Access::kRead;
  const auto begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
  int i = last;
  if (i >= global.count || !holds(global.tensors[i], begin, end, write)) {
    for (i = 0; i < global.count && !holds(global.tensors[i], begin, end, write);) ++i;
  }
  if (i == global.count) {
    if (global.has_addresses) return;
    fail_outside(begin, end, write, describe(site_of(call)));
  }
  last = i;
  const Shadow& shadow = shadows[static_cast<size_t>(i)];
  if (shadow.cells == nullptr) return;
  const Stamp me = stamp_of(*block.current);
  const size_t offset = begin - global.tensors[i].begin;
  if (write) {
    const Kind kind = access == Access::kAdd ? Kind::kAtomic : Kind::kPlain;
    shadow.note_write(offset, bytes, me, site_of(call), kind);
  } else {
    shadow.note_read(offset, bytes, me, site_of(call));
  }
}

void add_global(float* address, float value, const Call& call) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(float) != 0) {
    fail("%s: the address must be aligned to 4; got %p", describe(site_of(call)),
         static_cast<void*>(address));
  }
  check_global(address, sizeof(float), Access::kAdd, call);
  *address += value;  // threads run one after the other
}

namespace {

void check(uintptr_t address, unsigned long bytes, bool write, const void* from) {
  const void* place = reinterpret_cast<const void*>(address);
  if (block.current->fiber.has_on_stack(place)) return;
  if (!write && address >= global.image && address + bytes <= global.image_end) return;
  // emulated.py turns the offset into a line
  const auto offset = static_cast<int>(reinterpret_cast<uintptr_t>(from) - global.image);
  check_global(place, bytes, write ? Access::kWrite : Access::kRead,
               {write ? "write" : "read", {nullptr, offset}});
}

}  // namespace
}  // namespace emulation

// What the compiler calls at each access to memory that is not a thread's own, under
// -fsanitize=thread. (The calls of -fsanitize=address leave out a write behind a read of the same.)
extern "C" {
#define ACCESS(name, bytes)                                               \
  void __tsan_##name##read##bytes(uintptr_t address) {                    \
    emulation::check(address, bytes, false, __builtin_return_address(0)); \
  }                                                                       \
  void __tsan_##name##write##bytes(uintptr_t address) {                   \
    emulation::check(address, bytes, true, __builtin_return_address(0));  \
  }
ACCESS(, 1)
ACCESS(, 2)
ACCESS(, 4)
ACCESS(, 8)
ACCESS(, 16)
ACCESS(unaligned_, 2)
ACCESS(unaligned_, 4)
ACCESS(unaligned_, 8)
ACCESS(unaligned_, 16)

void __tsan_read_range(uintptr_t address, unsigned long bytes) {
  emulation::check(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(uintptr_t address, unsigned long bytes) {
  emulation::check(address, bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
}
