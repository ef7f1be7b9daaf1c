#include "shared_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "block.h"
#include "emulation.h"
#include "global_memory.h"

namespace emulation {
namespace {

// Address of the first byte. Not 0, as it need not be on a GPU.
constexpr unsigned kBase = 1024;

// When and by whom: epoch of the block, of the warp (22 bits), thread (10 bits). 0 is never.
using Stamp = uint64_t;

Stamp now(const Thread& thread) {
  return static_cast<Stamp>(block.epoch) << 32 | static_cast<Stamp>(warp_of(thread).epoch) << 10 |
         thread.index;
}
unsigned thread_in(Stamp stamp) { return static_cast<unsigned>(stamp & 1023); }
unsigned warp_in(Stamp stamp) { return thread_in(stamp) / kLanes; }
uint32_t block_epoch_in(Stamp stamp) { return static_cast<uint32_t>(stamp >> 32); }
uint32_t warp_epoch_in(Stamp stamp) { return static_cast<uint32_t>(stamp) >> 10; }

bool is_before(Stamp earlier, Stamp later) {
  if (block_epoch_in(earlier) < block_epoch_in(later)) return true;
  if (thread_in(earlier) == thread_in(later)) return true;
  return warp_in(earlier) == warp_in(later) && warp_epoch_in(earlier) < warp_epoch_in(later);
}

// What is known of a byte. Two readers are enough to find every race with a later write: they are
// of two warps if there were such, else two lanes of the last warp epoch if there were such.
struct Cell {
  Stamp write;
  Stamp reads[2];
  uint16_t write_site;
  uint16_t read_sites[2];
  uint16_t in_flight;  // 1 from copy_async, whose stamp and site `write` has, to its arrival
};

std::vector<unsigned char> memory;
std::vector<Cell> cells;

Cell* cells_at(unsigned address) { return cells.data() + (address - kBase); }
unsigned char* bytes_at(unsigned address) { return memory.data() + (address - kBase); }
unsigned offset_of(const Cell& cell) { return static_cast<unsigned>(&cell - cells.data()); }

[[noreturn]] void fail_race(const Cell& cell, Stamp me, uint16_t site, Stamp other,
                            uint16_t other_site, const char* other_does) {
  fail("race in shared memory at byte %u: thread %u in %s, and thread %u %s it in %s, with no "
       "barrier between",
       offset_of(cell), thread_in(me), describe(site), thread_in(other), other_does,
       describe(other_site));
}

void check_arrived(const Cell& cell, Stamp me, uint16_t site) {
  if (!cell.in_flight) return;
  fail("byte %u of shared memory is on its way: thread %u in %s, and thread %u has not waited for "
       "its %s",
       offset_of(cell), thread_in(me), describe(site), thread_in(cell.write),
       describe(cell.write_site));
}

void note_read(Cell& cell, Stamp me, uint16_t site) {
  check_arrived(cell, me, site);
  if (block_epoch_in(cell.write) < block.first_epoch) {
    fail("byte %u of shared memory was never written: thread %u in %s", offset_of(cell),
         thread_in(me), describe(site));
  }
  if (!is_before(cell.write, me)) {
    fail_race(cell, me, site, cell.write, cell.write_site, "wrote");
  }
  if (cell.reads[0] == me) return;
  const bool first_is_old = block_epoch_in(cell.reads[0]) < block.epoch;
  const bool second_is_old = block_epoch_in(cell.reads[1]) < block.epoch;
  if (first_is_old || (warp_in(cell.reads[0]) == warp_in(me) &&
                       warp_epoch_in(cell.reads[0]) < warp_epoch_in(me))) {
    cell.reads[0] = me;
    cell.read_sites[0] = site;
    if (!second_is_old && warp_in(cell.reads[1]) == warp_in(me)) cell.reads[1] = 0;
  } else if (second_is_old || warp_in(cell.reads[1]) == warp_in(cell.reads[0])) {
    cell.reads[1] = me;
    cell.read_sites[1] = site;
  }
}

void note_write(Cell& cell, Stamp me, uint16_t site) {
  check_arrived(cell, me, site);
  if (!is_before(cell.write, me)) {
    fail_race(cell, me, site, cell.write, cell.write_site, "wrote");
  }
  for (int i = 0; i < 2; ++i) {
    if (!is_before(cell.reads[i], me)) {
      fail_race(cell, me, site, cell.reads[i], cell.read_sites[i], "read");
    }
    cell.reads[i] = 0;
  }
  cell.write = me;
  cell.write_site = site;
}

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
         static_cast<long long>(offset), static_cast<long long>(offset + bytes - 1),
         memory.size());
  }
  if (address % bytes != 0) {
    fail("%s at byte %llu of shared memory: not aligned to %u", describe(site),
         static_cast<unsigned long long>(offset), bytes);
  }
}

void read_by(unsigned reader, unsigned address, void* value, unsigned bytes, unsigned short site) {
  const Stamp me = now(thread_of(reader));
  Cell* cell = cells_at(address);
  for (unsigned i = 0; i < bytes; ++i) note_read(cell[i], me, site);
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
  const Stamp me = now(*block.current);
  Cell* cell = cells_at(address);
  for (unsigned i = 0; i < bytes; ++i) note_write(cell[i], me, site);
  std::memcpy(bytes_at(address), value, bytes);
}

void copy_async(unsigned address, const void* source, unsigned bytes, const Call& call) {
  const uint16_t site = site_of(call);
  check_address(address, 16, site);
  if (bytes > 16) fail("%s: 0 to 16 bytes can be copied; got %u", describe(site), bytes);
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0) {
    fail("%s: the source must be aligned to 16; got %p", describe(site), source);
  }
  if (bytes != 0) check_global(source, bytes, false, describe(site));
  Thread& thread = *block.current;
  const Stamp me = now(thread);
  Cell* cell = cells_at(address);
  for (unsigned i = 0; i < 16; ++i) {
    note_write(cell[i], me, site);
    cell[i].in_flight = 1;
  }
  thread.copies.push_back({address, source, bytes, thread.open_group});
}

void commit_copies() { ++block.current->open_group; }

void wait_copies(unsigned pending, const Call&) {
  Thread& thread = *block.current;
  const Stamp me = now(thread);
  size_t done = 0;
  for (const PendingCopy& copy : thread.copies) {
    if (copy.group + pending >= thread.open_group) break;
    ++done;
    unsigned char* bytes = bytes_at(copy.address);
    std::memcpy(bytes, copy.source, copy.bytes);
    std::memset(bytes + copy.bytes, 0, 16 - copy.bytes);
    Cell* cell = cells_at(copy.address);
    for (unsigned i = 0; i < 16; ++i) {
      cell[i].in_flight = 0;
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
  for (Cell& cell : cells) cell.in_flight = 0;
}

}  // namespace emulation
