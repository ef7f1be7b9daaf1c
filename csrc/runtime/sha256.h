// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace ftrt::cuda {

class Sha256 {
 public:
  void update(std::string_view bytes);

  // 32 bytes; update() may not follow.
  std::string digest();

 private:
  void block(const unsigned char* bytes);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> pending_{};
  uint64_t length_ = 0;  // bytes so far
};

// 32 bytes of `bytes`.
std::string sha256(std::string_view bytes);

// Two lower-case digits a byte.
std::string hexadecimal(std::string_view bytes);

}  // namespace ftrt::cuda
