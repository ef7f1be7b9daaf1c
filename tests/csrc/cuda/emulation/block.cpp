#include "block.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

#include "shared_memory.h"

namespace emulation {

Block block;
uint64_t switches = 0;

namespace {

Thread threads[kMaxThreads];
Warp warps[kMaxThreads / kLanes];
uint32_t ready_warps;  // that have a lane that can run
Fiber outside;         // the caller of run_block
std::string message;   // of the fault that ended the block; empty if there is none
uint64_t random_state;
uint32_t stickiness;  // of 256: how likely the next thread is of the same warp

// A bit of `mask` that is set, by chance.
unsigned pick_bit(uint32_t mask, unsigned random) {
  const unsigned shift = random % 32;
  const uint32_t rotated = mask >> shift | mask << (32 - shift) % 32;
  return (static_cast<unsigned>(__builtin_ctz(rotated)) + shift) % 32;
}

void set_ready(Thread& thread) {
  thread.state = State::kReady;
  const unsigned warp = thread.index / kLanes;
  warps[warp].ready |= 1u << thread.index % kLanes;
  ready_warps |= 1u << warp;
}

// Which threads wait where, in runs: "threads 0 to 31: barrier at x.cu:7; thread 32: ended".
std::string list_threads() {
  std::string list;
  for (unsigned first = 0, last; first < block.threads; first = last + 1) {
    last = first;
    const Thread& thread = threads[first];
    while (last + 1 < block.threads && threads[last + 1].state == thread.state &&
           (thread.state == State::kExited || threads[last + 1].site == thread.site)) {
      ++last;
    }
    char line[256];
    const bool ended = thread.state == State::kExited;
    std::snprintf(line, sizeof(line), "%sthread%s %u", list.empty() ? "" : "; ",
                  first == last ? "" : "s", first);
    list += line;
    if (last > first) list += " to " + std::to_string(last);
    list += std::string(": ") + (ended ? "ended" : describe(thread.site));
  }
  return list;
}

// Goes on with a thread that can run, by chance; the caller has noted where the current one waits.
void run_another() {
  if (ready_warps == 0) {
    if (block.exited < block.threads) fail("deadlock: %s", list_threads().c_str());
    Fiber::swap(block.current->fiber, outside);
    return;
  }
  const uint64_t random = random_bits();
  unsigned warp = block.current->index / kLanes;
  if (warps[warp].ready == 0 || (random >> 16 & 255) >= stickiness) {
    warp = pick_bit(ready_warps, static_cast<unsigned>(random));
  }
  const unsigned lane = pick_bit(warps[warp].ready, static_cast<unsigned>(random >> 8 & 31));
  warps[warp].ready &= ~(1u << lane);
  if (warps[warp].ready == 0) ready_warps &= ~(1u << warp);
  Thread& next = threads[warp * kLanes + lane];
  Thread& before = *block.current;
  if (&next == &before) return;
  block.current = &next;
  ++switches;
  Fiber::swap(before.fiber, next.fiber);
}

void run_thread() {
  call_entry();
  Thread& thread = *block.current;
  check_copies_done();
  const Warp& warp = warp_of(thread);
  if (warp.arrived != 0) {
    const unsigned other = thread.index / kLanes * kLanes + __builtin_ctz(warp.arrived);
    fail("the kernel ends for this thread, and thread %u of the same warp waits for it in %s",
         other, describe(threads[other].site));
  }
  thread.state = State::kExited;
  ++block.exited;
  run_another();
  __builtin_unreachable();
}

struct Site {
  Call call;
  std::string text;
};
// In the order of their numbers, and a hash table of these, plus 1.
std::vector<Site> sites;
constexpr size_t kSlots = 1 << 14;
uint16_t slots[kSlots];

}  // namespace

Thread& thread_of(unsigned index) { return threads[index]; }
Warp& warp_of(const Thread& thread) { return warps[thread.index / kLanes]; }

void seed_scheduler(uint64_t seed) { random_state = seed * 0xD1342543DE82EF95u + 1; }

// splitmix64, Steele et al. 2014
uint64_t random_bits() {
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

void fail(const char* format, ...) {
  char text[4096];
  int used = std::snprintf(text, sizeof(text), "block (%u, %u, %u)", block.index[0], block.index[1],
                           block.index[2]);
  if (block.current->state == State::kReady) {
    used += std::snprintf(text + used, sizeof(text) - used, ", thread %u", block.current->index);
  }
  used += std::snprintf(text + used, sizeof(text) - used, ": ");
  va_list values;
  va_start(values, format);
  std::vsnprintf(text + used, sizeof(text) - used, format, values);
  va_end(values);
  message = text;
  // The fibres are left where they are: a kernel has nothing that must be destroyed.
  Fiber::swap(block.current->fiber, outside);
  __builtin_unreachable();
}

uint16_t site_of(const Call& call) {
  const auto key = reinterpret_cast<uintptr_t>(call.operation) * 31 +
                   reinterpret_cast<uintptr_t>(call.where.file) +
                   static_cast<uintptr_t>(call.where.line) * 2654435761u;
  size_t slot = (key ^ key >> 14) % kSlots;
  for (; slots[slot] != 0; slot = (slot + 1) % kSlots) {
    const Call& other = sites[slots[slot] - 1].call;
    if (other.operation == call.operation && other.where.file == call.where.file &&
        other.where.line == call.where.line) {
      return static_cast<uint16_t>(slots[slot] - 1);
    }
  }
  if (sites.size() + 1 == kSlots) fail("more than %zu places touch memory", sites.size());
  char text[512];
  if (call.where.file == nullptr) {
    std::snprintf(text, sizeof(text), "%s at {pc %x}", call.operation,
                  static_cast<unsigned>(call.where.line));
  } else {
    std::snprintf(text, sizeof(text), "%s at %s:%d", call.operation, call.where.file,
                  call.where.line);
  }
  sites.push_back({call, text});
  slots[slot] = static_cast<uint16_t>(sites.size());
  return static_cast<uint16_t>(sites.size() - 1);
}

const char* describe(uint16_t site) { return sites[site].text.c_str(); }

void forget_sites() {
  sites.clear();
  std::memset(slots, 0, sizeof(slots));
}

void meet(void (*operation)(Warp& warp, void* const* operands), void* operands, const Call& call,
          bool aligned) {
  Thread& thread = *block.current;
  Warp& warp = warp_of(thread);
  const unsigned first = thread.index / kLanes * kLanes;
  const uint16_t site = site_of(call);
  if (warp.arrived != 0) {
    const Thread& other = threads[first + __builtin_ctz(warp.arrived)];
    if (warp.operation != operation || (aligned && other.site != site)) {
      fail("the lanes of a warp must do %s together; thread %u waits in %s", describe(site),
           other.index, describe(other.site));
    }
  }
  for (unsigned lane = 0; block.exited != 0 && lane < kLanes; ++lane) {
    if (threads[first + lane].state == State::kExited) {
      fail("%s needs all lanes of the warp; the kernel has ended for thread %u", describe(site),
           first + lane);
    }
  }
  warp.operation = operation;
  warp.arrived |= 1u << thread.index % kLanes;
  thread.operands = operands;
  thread.site = site;
  thread.state = State::kWaitsForWarp;
  if (warp.arrived != 0xffffffffu) {
    run_another();
    return;
  }
  void* all[kLanes];
  for (unsigned lane = 0; lane < kLanes; ++lane) all[lane] = threads[first + lane].operands;
  warp.arrived = 0;
  operation(warp, all);
  for (unsigned lane = 0; lane < kLanes; ++lane) set_ready(threads[first + lane]);
  run_another();
}

void warp_barrier(const Call& call) {
  const auto advance = [](Warp& warp, void* const*) {
    if (++warp.epoch >> kWarpEpochBits != 0) fail("too many warp barriers between two barriers");
  };
  meet(advance, nullptr, call, false);
}

void barrier(const Call& call) {
  Thread& thread = *block.current;
  thread.site = site_of(call);
  if (block.waiting != 0 && thread.site != block.barrier_site) {
    fail("all threads must wait in the same barrier; this one comes to %s, others wait in %s",
         describe(thread.site), describe(block.barrier_site));
  }
  block.barrier_site = thread.site;
  thread.state = State::kWaitsForBlock;
  if (++block.waiting == block.threads) {
    block.waiting = 0;
    ++block.epoch;
    for (unsigned i = 0; i < block.threads; ++i) set_ready(threads[i]);
    for (unsigned i = 0; i < block.threads / kLanes; ++i) warps[i].epoch = 0;
  }
  run_another();
}

bool run_block(const unsigned (&index)[3]) {
  std::memcpy(block.index, index, sizeof(index));
  block.first_epoch = ++block.epoch;
  block.waiting = block.exited = 0;
  message.clear();
  // Threads that change places all the time, and warps that run far ahead of others, find
  // different faults.
  constexpr uint32_t kChoices[] = {0, 240, 255};
  stickiness = kChoices[random_bits() % 3];
  ready_warps = 0;
  for (unsigned i = 0; i < block.threads / kLanes; ++i) warps[i] = {0, 0, 0, nullptr, i};
  for (unsigned i = 0; i < block.threads; ++i) {
    Thread& thread = threads[i];
    thread.index = i;
    thread.copies.clear();
    thread.open_group = 0;
    thread.fiber.prepare(i, run_thread);
    set_ready(thread);
  }
  const unsigned first = static_cast<unsigned>(random_bits() % block.threads);
  block.current = &threads[first];
  Warp& warp = warp_of(*block.current);
  warp.ready &= ~(1u << first % kLanes);
  Fiber::swap(outside, block.current->fiber);
  if (!message.empty()) forget_copies();
  return message.empty();
}

const char* failure() { return message.c_str(); }

unsigned thread_index() { return block.current->index; }
unsigned block_index(int axis) { return block.index[axis]; }
unsigned block_count(int axis) { return block.grid[axis]; }

}  // namespace emulation
