// What Python calls.
#include <cstdio>
#include <mutex>
#include <numeric>
#include <vector>

#include "block.h"
#include "global_memory.h"
#include "shared_memory.h"

namespace emulation {

// As in emulated.py.
struct Launch {
  void (*call)(const unsigned char* parameters);
  const unsigned char* parameters;
  unsigned threads;
  unsigned grid[3];
  unsigned shared_bytes;
  uint64_t seed;
  const Tensor* tensors;
  int tensor_count;
  bool has_addresses;          // beside tensors, of memory of which nothing is known
  uintptr_t image, image_end;  // the kernel's machine code and constants
};

namespace {

const Launch* current;

bool run(const Launch& launch) {
  current = &launch;
  forget_sites();
  open_global(
      {launch.tensors, launch.tensor_count, launch.has_addresses, launch.image, launch.image_end});
  block.launch_epoch = block.epoch + 1;
  block.threads = launch.threads;
  for (int axis = 0; axis < 3; ++axis) block.grid[axis] = launch.grid[axis];
  resize_shared(launch.shared_bytes);
  seed_scheduler(launch.seed);
  const uint64_t count = uint64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), uint64_t{0});
  for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
  for (const uint64_t number : order) {
    const unsigned index[3] = {static_cast<unsigned>(number % launch.grid[0]),
                               static_cast<unsigned>(number / launch.grid[0] % launch.grid[1]),
                               static_cast<unsigned>(number / launch.grid[0] / launch.grid[1])};
    if (!run_block(index)) return false;
  }
  return true;
}

}  // namespace

void call_entry() { current->call(current->parameters); }

}  // namespace emulation

extern "C" {

// Runs all blocks. 0, or 1 with the fault in `message`.
int emulation_launch(const emulation::Launch* launch, char* message, size_t message_bytes) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (emulation::run(*launch)) return 0;
  std::snprintf(message, message_bytes, "%s", emulation::failure());
  return 1;
}

// Context switches until now, in this process.
uint64_t emulation_switches() { return emulation::switches; }
}
