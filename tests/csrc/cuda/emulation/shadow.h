// For each byte of a memory, who touched it last; races are found here.
//
// Two accesses of different threads of a block are in order if a block barrier lies between them,
// or a warp barrier if both are of one warp; those of different blocks of a launch never are. What
// is not in order is a race if one of the two writes and not both are atomic.
#pragma once

#include <cstddef>
#include <cstdint>

#include "block.h"

namespace emulation {

// When and by whom: epoch of the block, of the warp (22 bits), thread (10 bits). 0 is never.
using Stamp = uint64_t;

inline Stamp stamp_of(const Thread& thread) {
  return static_cast<Stamp>(block.epoch) << 32 | static_cast<Stamp>(warp_of(thread).epoch) << 10 |
         thread.index;
}

enum class Kind : uint8_t {
  kPlain,
  kAtomic,
  kOnItsWay,  // from copy_async to the arrival
};

// What is known of a byte. Two reads are enough to find every race with a later write: one is of
// another block if there was such; else they are of two warps if there were such; else of two lanes
// in the last warp epoch if there were such.
struct Cell {
  Stamp write;
  Stamp reads[2];
  uint16_t write_site;
  uint16_t read_sites[2];
  Kind kind;  // of the write
};

// The cells of a memory. What earlier launches left in them, or zeros, counts for nothing.
struct Shadow {
  Cell* cells;
  const char* name;  // "shared memory"
  bool is_of_block;  // what other blocks wrote is not there

  void note_read(size_t offset, size_t bytes, Stamp me, uint16_t site) const;
  void note_write(size_t offset, size_t bytes, Stamp me, uint16_t site, Kind kind) const;

 private:
  bool is_before(Stamp earlier, Stamp later) const;
  void note_read(Cell& cell, Stamp me, uint16_t site) const;
  void note_write(Cell& cell, Stamp me, uint16_t site, Kind kind) const;
  void check_arrived(const Cell& cell, Stamp me, uint16_t site) const;
  [[noreturn]] void fail_race(const Cell& cell, Stamp me, uint16_t site, Stamp other,
                              uint16_t other_site, const char* other_does) const;
};

}  // namespace emulation
