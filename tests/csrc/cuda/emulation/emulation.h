// What the emulated ptx.cuh needs of the runtime: a block's threads as fibres, its shared memory
// with a record of who touched each byte, and the operations that the 32 lanes of a warp do
// together. A fault of the kernel ends the launch with a message; none of these returns then.
#pragma once

namespace emulation {

// Source line of a call, taken where a kernel calls a function that has it as last parameter.
struct Where {
  const char* file;
  int line;
  constexpr Where(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

// An operation of a kernel, for messages.
struct Call {
  const char* operation;
  Where where;
};

// ---- shared memory; addresses are aligned to `bytes` ----

unsigned shared_base();
void load_shared(unsigned address, void* value, unsigned bytes, const Call& call);
void store_shared(unsigned address, const void* value, unsigned bytes, const Call& call);
void copy_async(unsigned address, const void* source, unsigned bytes, const Call& call);
void commit_copies();
void wait_copies(unsigned pending, const Call& call);

// ---- what a warp does together: registers in, registers out ----

void load_matrices(unsigned address, unsigned (&out)[4], bool transposed, const Call& call);

enum class Product { kInt8, kFloat16, kBFloat16 };

// `c` holds 4 ints or 4 floats. The products of 16-bit floats and the sum with c are taken in
// double and rounded once; the tensor cores round more often, and truncate.
void multiply(Product product, void* c, const unsigned (&a)[4], const unsigned (&b)[2],
              const Call& call);
float exchange(float value, int mask, const Call& call);
void warp_barrier(const Call& call);
void barrier(const Call& call);

// ---- conversions, to nearest even; NaN becomes 0x7fff, as cvt.rn says ----

unsigned short to_float16(float value);
unsigned short to_bfloat16(float value);
float from_float16(unsigned short bits);

// ---- global memory and threads ----

void add_global(float* address, float value, const Call& call);

// Index in the block, and block's index and count along axis 0, 1 or 2.
unsigned thread_index();
unsigned block_index(int axis);
unsigned block_count(int axis);

}  // namespace emulation
