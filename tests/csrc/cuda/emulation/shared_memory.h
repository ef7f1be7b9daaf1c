// Shared memory. Each access is noted in a shadow of it, and checked there.
#pragma once

#include <cstddef>

namespace emulation {

// Gives blocks `bytes` of shared memory from now on; what was written before is gone.
void resize_shared(unsigned bytes);

// For ldmatrix: `bytes` at `address` are read by thread `reader`.
void read_by(unsigned reader, unsigned address, void* value, unsigned bytes, unsigned short site);

// A fault unless `address` is aligned to `bytes` and all of them lie in the block's memory.
void check_address(unsigned address, unsigned bytes, unsigned short site);

// A fault if the current thread, which ends, has copies it has not waited for.
void check_copies_done();

// After a fault, when copies may still be on their way.
void forget_copies();

}  // namespace emulation
