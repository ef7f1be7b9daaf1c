// What the tensor cores do, on the registers of 32 lanes. With g = lane / 4, t = lane % 4.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"
#include "emulation.h"
#include "shared_memory.h"

namespace emulation {
namespace {

struct Matrices {
  unsigned address;
  unsigned (*out)[4];
  unsigned short site;
};

template <bool kTransposed>
void load(Warp& warp, void* const* operands) {
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Matrices*>(operands[lane]);
    check_address(mine.address, 16, mine.site);
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Matrices*>(operands[lane]);
    const unsigned g = lane / 4, t = lane % 4, reader = warp.index * kLanes + lane;
    const auto row = [operands](unsigned matrix, unsigned r) {
      return static_cast<const Matrices*>(operands[8 * matrix + r])->address;
    };
    for (unsigned i = 0; i < 4; ++i) {
      if constexpr (kTransposed) {
        uint16_t pair[2];
        read_by(reader, row(i, 2 * t) + 2 * g, &pair[0], 2, mine.site);
        read_by(reader, row(i, 2 * t + 1) + 2 * g, &pair[1], 2, mine.site);
        std::memcpy(&(*mine.out)[i], pair, 4);
      } else {
        read_by(reader, row(i, g) + 4 * t, &(*mine.out)[i], 4, mine.site);
      }
    }
  }
}

struct Factors {
  void* c;
  const unsigned (*a)[4];
  const unsigned (*b)[2];
};

// Unpacks the fragments to a (16, depth) and b (8, depth), of `kPerRegister` elements a register,
// and calls add(row, column, element of c) for each element.
template <typename T, unsigned kDepth, typename Convert, typename Add>
void multiply_fragments(void* const* operands, Convert convert, Add add) {
  constexpr unsigned kPer = kDepth / 8;  // elements in a register
  T a[16][kDepth], b[8][kDepth];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Factors*>(operands[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < kPer; ++i) {
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned k = kDepth / 2 * half + kPer * t + i;
        a[g][k] = convert((*mine.a)[2 * half], i);
        a[g + 8][k] = convert((*mine.a)[2 * half + 1], i);
        b[g][k] = convert((*mine.b)[half], i);
      }
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Factors*>(operands[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      add(a[g + i / 2 * 8], b[2 * t + i % 2], mine.c, i);
    }
  }
}

void multiply_int8(Warp&, void* const* operands) {
  const auto convert = [](unsigned bits, unsigned i) {
    return static_cast<int16_t>(static_cast<int8_t>(bits >> 8 * i));
  };
  const auto add = [](const int16_t* a, const int16_t* b, void* c, unsigned i) {
    int sum = 0;
    for (unsigned k = 0; k < 32; ++k) sum += a[k] * b[k];
    static_cast<unsigned*>(c)[i] += static_cast<unsigned>(sum);  // wraps
  };
  multiply_fragments<int16_t, 32>(operands, convert, add);
}

template <float (*kWiden)(unsigned short)>
void multiply_halves(Warp&, void* const* operands) {
  const auto convert = [](unsigned bits, unsigned i) {
    return kWiden(static_cast<unsigned short>(bits >> 16 * i));
  };
  const auto add = [](const float* a, const float* b, void* c, unsigned i) {
    double sum = static_cast<float*>(c)[i];
    for (unsigned k = 0; k < 16; ++k) sum += static_cast<double>(a[k]) * b[k];
    static_cast<float*>(c)[i] = static_cast<float>(sum);
  };
  multiply_fragments<float, 16>(operands, convert, add);
}

float from_bfloat16(unsigned short bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

struct Exchange {
  float value;
  unsigned from;  // lane
  float result;
};

void exchange_values(Warp&, void* const* operands) {
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    auto& mine = *static_cast<Exchange*>(operands[lane]);
    mine.result = static_cast<const Exchange*>(operands[mine.from])->value;
  }
}

}  // namespace

void load_matrices(unsigned address, unsigned (&out)[4], bool transposed, const Call& call) {
  Matrices mine{address, &out, site_of(call)};
  meet(transposed ? load<true> : load<false>, &mine, call, true);
}

void multiply(Product product, void* c, const unsigned (&a)[4], const unsigned (&b)[2],
              const Call& call) {
  Factors mine{c, &a, &b};
  meet(product == Product::kInt8      ? multiply_int8
       : product == Product::kFloat16 ? multiply_halves<from_float16>
                                      : multiply_halves<from_bfloat16>,
       &mine, call, true);
}

float exchange(float value, int mask, const Call& call) {
  if (mask < 0 || mask >= static_cast<int>(kLanes)) {
    fail("%s: the mask must be 0 to 31; got %d", describe(site_of(call)), mask);
  }
  Exchange mine{value, block.current->index % kLanes ^ static_cast<unsigned>(mask), 0.0f};
  meet(exchange_values, &mine, call, false);
  return mine.result;
}

unsigned short to_bfloat16(float value) {
  if (std::isnan(value)) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

unsigned short to_float16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const unsigned sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return static_cast<unsigned short>(sign | 0x7c00);
  // Below 2^-14 halves are multiples of 2^-24; from there on each power of two has 1024 of them.
  int exponent = -14;
  if (magnitude >= 0x1p-14f) exponent = std::ilogb(magnitude);
  // exact, and nearbyint rounds halves to even
  const auto steps = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  // 1024 steps, and also 2048, carry into the exponent
  return static_cast<unsigned short>(sign | ((static_cast<unsigned>(exponent + 14) << 10) + steps));
}

float from_float16(unsigned short bits) {
  const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = static_cast<float>(fraction) * 0x1p-24f;
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + fraction), static_cast<int>(exponent) - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

}  // namespace emulation
