#include "ftrt/ceiling.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "ftrt/cpu_features.h"
#include "gemm_driver.h"

namespace ftrt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kIterations = 10000;  // some ten microseconds between looks at the clock
constexpr int64_t kReadBytes = int64_t{512} << 20;
constexpr int64_t kReadStep = 1 << 16;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// The chosen level's loop of that kind.
cpu::CeilingLoop loop_of(const std::string& kind) {
  const cpu::KernelSet& set = cpu::chosen_kernels();
  if (kind == "int8") return set.s8_ceiling;
  if (kind == "fp32") return set.f32_ceiling;
  if (kind != "bf16") {
    throw std::invalid_argument("measure_ceiling: kind must be int8, bf16, fp32 or read; got '" +
                                kind + "'");
  }
  if (set.bf16_ceiling == nullptr) {
    throw std::invalid_argument(
        "measure_ceiling: the level must multiply bfloat16; got kind 'bf16' at level '" +
        std::string(isa_name(chosen_isa())) + "'");
  }
  return set.bf16_ceiling;
}

// Reads kReadStep bytes.
void read_step(const uint8_t* from) {
  typedef uint64_t Words __attribute__((vector_size(64)));
  Words sums[4] = {};
  for (int64_t i = 0; i < kReadStep; i += 256) {
    for (int part = 0; part < 4; ++part) {
      Words words;
      std::memcpy(&words, from + i + part * 64, 64);
      sums[part] |= words;
    }
  }
  const Words all = sums[0] | sums[1] | sums[2] | sums[3];
  uint64_t any = 0;
  for (int i = 0; i < 8; ++i) any |= all[i];
  __asm__ volatile("" : : "r"(any));
}

// Σ of what the threads do in a second. Each calls prepare(thread), waits for the others, then
// calls work(thread) until the time is over; work returns how much it did.
template <class Prepare, class Work>
double rate_of_threads(int64_t threads, double seconds, const Prepare& prepare, const Work& work) {
  std::atomic<int64_t> waiting{threads};
  std::vector<double> rates(static_cast<size_t>(threads));
  std::vector<std::thread> running;
  for (int64_t thread = 0; thread < threads; ++thread) {
    running.emplace_back([&, thread] {
      prepare(thread);
      --waiting;
      while (waiting != 0) std::this_thread::yield();
      const Clock::time_point begin = Clock::now();
      double done = 0.0;
      double elapsed = 0.0;
      while (elapsed < seconds) {
        done += static_cast<double>(work(thread));
        elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
      }
      rates[static_cast<size_t>(thread)] = done / elapsed;
    });
  }
  for (std::thread& thread : running) thread.join();
  double total = 0.0;
  for (const double rate : rates) total += rate;
  return total;
}

double read_rate(int64_t threads, double seconds) {
  const int64_t share = kReadBytes / threads / kReadStep * kReadStep;
  std::unique_ptr<uint8_t[], Free> memory(
      static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(share * threads))));
  if (!memory) throw std::bad_alloc();
  std::vector<int64_t> next(static_cast<size_t>(threads) * 8);  // a cache line each
  const auto prepare = [&](int64_t thread) {
    std::memset(memory.get() + thread * share, 1, static_cast<size_t>(share));
  };
  const auto work = [&](int64_t thread) {
    int64_t& at = next[static_cast<size_t>(thread) * 8];
    read_step(memory.get() + thread * share + at);
    at = at + kReadStep == share ? 0 : at + kReadStep;
    return kReadStep;
  };
  return rate_of_threads(threads, seconds, prepare, work);
}

}  // namespace

double measure_ceiling(const std::string& kind, int64_t threads, double seconds) {
  if (threads < 1 || threads > 1024 || !(seconds > 0.0)) {
    throw std::invalid_argument(
        "measure_ceiling: threads must be 1 to 1024 and seconds above 0; got " +
        std::to_string(threads) + ", " + std::to_string(seconds));
  }
  if (kind == "read") return read_rate(threads, seconds);
  const cpu::CeilingLoop loop = loop_of(kind);
  return rate_of_threads(
      threads, seconds, [](int64_t) {}, [loop](int64_t) { return loop(kIterations); });
}

}  // namespace ftrt
