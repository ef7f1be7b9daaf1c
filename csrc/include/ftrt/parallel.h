// How a torch-free kernel borrows the caller's threads.
#pragma once

#include <cstdint>

namespace ftrt {

// Work on items [begin, end); `context` is what was handed to ParallelFor.
using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);

// Splits [begin, end) over the caller's threads, at least `grain` items each, and returns when all
// are done. It has the signature of torch's stable-ABI `torch_parallel_for`: a second OpenMP
// runtime in the process would fight torch's for the cores.
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, ParallelBody body,
                             void* context);

struct Threads {
  int64_t count = 1;
  ParallelFor parallel_for = nullptr;
};

}  // namespace ftrt
