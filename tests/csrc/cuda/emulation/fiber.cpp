#include "fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#if !defined(EMULATION_UCONTEXT)
// Saves what a function must keep on the stack, and the stack pointer in *rdi; takes rsi as the
// stack pointer and does the reverse. System V calling convention; floating-point modes are kept
// by none of the fibres.
extern "C" void emulation_swap(void** save, void* take);
asm(R"(
.text
.hidden emulation_swap
.globl emulation_swap
.type emulation_swap, @function
emulation_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_swap, .-emulation_swap
)");
#endif

namespace emulation {
namespace {

constexpr size_t kPage = 4096;

char* stack_of(unsigned index) {
  static std::vector<char*> pool;
  while (pool.size() <= index) {
    const size_t bytes = kPage + Fiber::kStackBytes;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) {
      std::perror("emulation: stacks");
      std::abort();
    }
    pool.push_back(static_cast<char*>(memory) + kPage);
  }
  return pool[index];
}

// Stacks start a few cache lines apart: at one offset in their pages, all would share a few sets
// of the cache.
size_t colour(unsigned index) { return index * 5 % 64 * 64; }

}  // namespace

#if !defined(EMULATION_UCONTEXT)

void Fiber::prepare(unsigned index, void (*entry)()) {
  stack_ = stack_of(index);
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes - colour(index));
  *--top = nullptr;  // where a return address would be: `entry` finds the stack as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
}

void Fiber::swap(Fiber& from, Fiber& to) {
  emulation_swap(&from.stack_pointer_, to.stack_pointer_);
}

#else

void Fiber::prepare(unsigned index, void (*entry)()) {
  stack_ = stack_of(index);
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes - colour(index);
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fiber::swap(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

#endif

}  // namespace emulation
