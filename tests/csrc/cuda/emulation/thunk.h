// Calls a kernel with the bytes of its parameters, and says what its parameters are.
#pragma once

#include <stddef.h>
#include <string.h>

namespace emulation {

// The letter that ftrt.kernels.signature has for a parameter, with P for a pointer that is written
// through; '?' if it has none.
template <typename T>
struct Letter {
  static constexpr char value = '?';
};
template <typename T>
struct Letter<T*> {
  static constexpr char value = 'P';
};
template <typename T>
struct Letter<const T*> {
  static constexpr char value = 'p';
};
template <>
struct Letter<int> {
  static constexpr char value = 'i';
};
template <>
struct Letter<unsigned> {
  static constexpr char value = 'u';
};
template <>
struct Letter<long long> {
  static constexpr char value = 'l';
};
template <>
struct Letter<unsigned long long> {
  static constexpr char value = 'l';
};
template <>
struct Letter<float> {
  static constexpr char value = 'f';
};

// A function by the types of its parameters. Each stands at the next multiple of its size.
template <typename... P>
struct Entry {
  static constexpr const char letters[] = {Letter<P>::value..., '\0'};

  // The parameters lie outside of what a kernel may touch.
  template <typename T>
  __attribute__((no_sanitize("thread"))) static T take(const unsigned char* parameters,
                                                               size_t* offset) {
    *offset = (*offset + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    T value;
    memcpy(&value, parameters + *offset, sizeof(T));
    *offset += sizeof(T);
    return value;
  }

  static void call(void (*kernel)(P...), const unsigned char* parameters) {
    size_t offset = 0;
    // braces, unlike a call's arguments, are evaluated from left to right
    struct Arguments {
      void (*kernel)(P...);
      Arguments(void (*k)(P...), P... values) { k(values...); }
    };
    Arguments{kernel, take<P>(parameters, &offset)...};
  }
};

template <typename... P>
constexpr Entry<P...> entry_of(void (*)(P...)) {
  return {};
}

}  // namespace emulation

extern "C" {
// First and last byte of this shared object, as the linker laid it out.
extern const char __ehdr_start __attribute__((visibility("hidden")));
extern const char _end __attribute__((visibility("hidden")));
}

#define EMULATION_ENTRY(kernel)                                                                 \
  extern "C" {                                                                                  \
  __attribute__((visibility("default"))) void emulation_call(const unsigned char* parameters) { \
    decltype(emulation::entry_of(kernel))::call(kernel, parameters);                            \
  }                                                                                             \
  __attribute__((visibility("default"))) const char* emulation_letters() {                      \
    return decltype(emulation::entry_of(kernel))::letters;                                      \
  }                                                                                             \
  __attribute__((visibility("default"))) const char* emulation_image(int end) {                 \
    return end ? &_end : &__ehdr_start;                                                         \
  }                                                                                             \
  }
