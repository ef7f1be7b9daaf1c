// What a compiler calls where a kernel does what C++ leaves undefined (-fsanitize=...): a pointer
// that is null or not aligned to its type, an index outside of an array, overflow.
#include <cstdint>

#include "block.h"

namespace {

// How the data of each of these calls begins.
struct Location {
  const char* file;
  uint32_t line;
  uint32_t column;
};

[[noreturn]] void fail_at(const void* data, const char* what) {
  const auto* location = static_cast<const Location*>(data);
  emulation::fail("%s at %s:%u", what, location->file, location->line);
}

}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1(void* data, uintptr_t pointer) {
  fail_at(data, pointer == 0 ? "a null pointer is used" : "a pointer is not aligned to its type");
}
void __ubsan_handle_out_of_bounds(void* data, uintptr_t) {
  fail_at(data, "an index is outside of its array");
}
void __ubsan_handle_shift_out_of_bounds(void* data, uintptr_t, uintptr_t) {
  fail_at(data, "a shift is negative or not less than the width");
}
void __ubsan_handle_add_overflow(void* data, uintptr_t, uintptr_t) {
  fail_at(data, "a signed sum overflows");
}
void __ubsan_handle_sub_overflow(void* data, uintptr_t, uintptr_t) {
  fail_at(data, "a signed difference overflows");
}
void __ubsan_handle_mul_overflow(void* data, uintptr_t, uintptr_t) {
  fail_at(data, "a signed product overflows");
}
void __ubsan_handle_negate_overflow(void* data, uintptr_t) {
  fail_at(data, "a negation overflows");
}
void __ubsan_handle_divrem_overflow(void* data, uintptr_t, uintptr_t) {
  fail_at(data, "a division by zero, or one that overflows,");
}
void __ubsan_handle_float_cast_overflow(void* data, uintptr_t) {
  fail_at(data, "a float does not fit the integer type it is cast to");
}
}
