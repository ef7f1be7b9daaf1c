// A block of threads and who runs when.
#pragma once

#include <cstdint>
#include <vector>

#include "emulation.h"
#include "fiber.h"

namespace emulation {

constexpr unsigned kLanes = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kWarpEpochBits = 22;  // of a stamp, see shadow.h

enum class State { kReady, kWaitsForWarp, kWaitsForBlock, kExited };

// A copy_async that its thread has not waited for.
struct PendingCopy {
  unsigned address;
  const void* source;
  unsigned bytes;  // of the source; the rest of 16 are zeros
  unsigned group;
};

struct Thread {
  Fiber fiber;
  unsigned index;
  State state;
  uint16_t site;   // of the call it waits in
  void* operands;  // of that call
  std::vector<PendingCopy> copies;
  unsigned open_group;  // that the next copy belongs to
};

struct Warp {
  uint32_t ready;    // lanes that can run
  uint32_t arrived;  // lanes that wait for the others of the warp
  uint32_t epoch;    // warp barriers since the last block barrier
  void (*operation)(Warp& warp, void* const* operands);
  unsigned index;
};

// Everything of the launch that runs; there is one at a time.
struct Block {
  unsigned threads;
  unsigned grid[3];
  unsigned index[3];
  uint32_t launch_epoch;  // first one of this launch
  uint32_t first_epoch;   // first one of this block
  uint32_t epoch;         // goes up at each block barrier and from block to block, never down
  unsigned waiting;       // threads that wait for the block
  unsigned exited;
  uint16_t barrier_site;
  Thread* current;
};

extern Block block;

Thread& thread_of(unsigned index);
Warp& warp_of(const Thread& thread);

// Ends the launch: `format` behind the block and, inside a thread, its number.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A number for a call, for records; `describe` reverses it: "load_shared_32 at x.cu:17". Without a
// file, the line is an offset in the kernel's machine code: "read at {pc 1f3}".
uint16_t site_of(const Call& call);
void forget_sites();
const char* describe(uint16_t site);

// Waits until all lanes of the warp have come; the last one then runs `operation`, on the operands
// of each lane. `aligned`: all lanes must come from the same line.
void meet(void (*operation)(Warp& warp, void* const* operands), void* operands, const Call& call,
          bool aligned);

// Calls the kernel, in a thread.
void call_entry();

// Runs one block; false if a fault ended it, see `failure`.
bool run_block(const unsigned (&index)[3]);
const char* failure();

// Starts the random numbers that say which thread runs next.
void seed_scheduler(uint64_t seed);
uint64_t random_bits();

// Context switches since the library was loaded.
extern uint64_t switches;

}  // namespace emulation
