#include "shared_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "block.h"
#include "emulation.h"
#include "global_memory.h"
#include "shadow.h"

namespace emulation {
namespace {

// Address of the first byte. Not 0, as it need not be on a GPU.
constexpr unsigned kBase = 1024;

std::vector<unsigned char> memory;
std::vector<Cell> cells;

Shadow shadow() { return {cells.data(), "shared memory", true}; }

Cell* cells_at(unsigned address) { return cells.data() + (address - kBase); }
unsigned char* bytes_at(unsigned address) { return memory.data() + (address - kBase); }

}  // namespace

void resize_shared(unsigned bytes) {
  memory.resize(bytes);
  cells.resize(bytes);
}

unsigned shared_base() { return kBase; }

void check_address(unsigned address, unsigned bytes, unsigned short site) {
  const uint64_t offset = static_cast<uint64_t>(address) - kBase;
  if (address < kBase || offset + bytes > memory.size()) {
    fail("%s touches bytes %lld to %lld of shared memory, the block has %zu", describe(site),
         static_cast<long long>(offset), static_cast<long long>(offset + bytes - 1), memory.size());
  }
  if (address % bytes != 0) {
    fail("%s at byte %llu of shared memory: not aligned to %u", describe(site),
         static_cast<unsigned long long>(offset), bytes);
  }
}

void read_by(unsigned reader, unsigned address, void* value, unsigned bytes, unsigned short site) {
  shadow().note_read(address - kBase, bytes, stamp_of(thread_of(reader)), site);
  std::memcpy(value, bytes_at(address), bytes);
}

void load_shared(unsigned address, void* value, unsigned bytes, const Call& call) {
  const uint16_t site = site_of(call);
  check_address(address, bytes, site);
  read_by(block.current->index, address, value, bytes, site);
}

void store_shared(unsigned address, const void* value, unsigned bytes, const Call& call) {
  const uint16_t site = site_of(call);
  check_address(address, bytes, site);
  shadow().note_write(address - kBase, bytes, stamp_of(*block.current), site, Kind::kPlain);
  std::memcpy(bytes_at(address), value, bytes);
}

void copy_async(unsigned address, const void* source, unsigned bytes, const Call& call) {
  const uint16_t site = site_of(call);
  check_address(address, 16, site);
  if (bytes > 16) fail("%s: 0 to 16 bytes can be copied; got %u", describe(site), bytes);
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0) {
    fail("%s: the source must be aligned to 16; got %p", describe(site), source);
  }
  if (bytes != 0) check_global(source, bytes, Access::kRead, call);
  Thread& thread = *block.current;
  shadow().note_write(address - kBase, 16, stamp_of(thread), site, Kind::kOnItsWay);
  thread.copies.push_back({address, source, bytes, thread.open_group});
}

void commit_copies() { ++block.current->open_group; }

void wait_copies(unsigned pending, const Call&) {
  Thread& thread = *block.current;
  const Stamp me = stamp_of(thread);
  size_t done = 0;
  for (const PendingCopy& copy : thread.copies) {
    if (copy.group + pending >= thread.open_group) break;
    ++done;
    unsigned char* bytes = bytes_at(copy.address);
    std::memcpy(bytes, copy.source, copy.bytes);
    std::memset(bytes + copy.bytes, 0, 16 - copy.bytes);
    Cell* cell = cells_at(copy.address);
    for (unsigned i = 0; i < 16; ++i) {
      cell[i].kind = Kind::kPlain;
      cell[i].write = me;
    }
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<long>(done));
}

void check_copies_done() {
  const Thread& thread = *block.current;
  if (thread.copies.empty()) return;
  fail("the kernel ends with %zu copies that this thread has not waited for; the first is %s",
       thread.copies.size(), describe(cells_at(thread.copies.front().address)->write_site));
}

void forget_copies() {
  for (Cell& cell : cells) cell.kind = Kind::kPlain;
}

}  // namespace emulation
