// What the tests of the kernels share: random numbers, buffers of exactly the size that is said,
// bfloat16 in plain C++, and a count of what was checked.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace ftrt::test {

// splitmix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t limit) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(limit));
  }
  bool coin() { return (next() & 1) != 0; }
  // In (-1, 1).
  float number() {
    const int64_t steps = static_cast<int64_t>(next() >> 40) - (1 << 23);
    return static_cast<float>(steps) / (1 << 23);
  }
  template <class T, size_t n>
  T one_of(const T (&values)[n]) {
    return values[below(static_cast<int64_t>(n))];
  }

 private:
  uint64_t state_;
};

inline double bf16_value(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rounded to nearest even; finite numbers only.
inline uint16_t bf16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline double as_bf16(double value) { return bf16_value(bf16_bits(static_cast<float>(value))); }

struct Counts {
  int64_t checks = 0;
  int64_t failures = 0;
};

inline Counts& counts() {
  static Counts counts;
  return counts;
}

inline bool expect(bool holds, const std::string& what) {
  ++counts().checks;
  if (!holds && ++counts().failures <= 20) std::printf("FAILED %s\n", what.c_str());
  return holds;
}

}  // namespace ftrt::test
