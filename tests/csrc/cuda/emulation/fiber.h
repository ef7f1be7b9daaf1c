// One thread of a block as a fibre: a stack and where it stopped.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_UCONTEXT
#endif
#if defined(EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulation {

class Fiber {
 public:
  // Stacks are memory that is touched as it is needed. Below each is a page that faults.
  static constexpr size_t kStackBytes = 256 * 1024;

  // `index` chooses the stack, from a pool that stays.
  void prepare(unsigned index, void (*entry)());

  // Stops `from`, which is running, and goes on with `to`.
  static void swap(Fiber& from, Fiber& to);

  bool has_on_stack(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - stack_) < kStackBytes;
  }

 private:
#if !defined(EMULATION_UCONTEXT)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  char* stack_ = nullptr;
};

}  // namespace emulation
