#include "amx_cases.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "amx_tiles.h"
#include "check.h"
#include "gemm_cases.h"
#include "gemm_driver.h"

namespace ftrt::test {
namespace {

using cpu::TileConfig;

TileConfig config_of(int tiles, int rows, int row_bytes) {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < tiles; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.row_bytes[tile] = static_cast<uint16_t>(row_bytes);
  }
  return config;
}

template <class Body>
void expect_refused(const char* rule, const Body& body) {
  std::string got = "nothing";
  try {
    body();
  } catch (const std::logic_error& error) {
    got = error.what();
  }
  expect(got.find(rule) != std::string::npos, std::string(rule) + ", got " + got);
}

void check_refusals() {
  emulated::release();
  expect_refused("#UD: tiles are not configured", [] { emulated::zero(0); });
  expect_refused("#GP: no such palette", [] {
    TileConfig config = config_of(8, 16, 64);
    config.palette = 2;
    cpu::configure_tiles(config);
  });
  expect_refused("#GP: reserved", [] {
    TileConfig config = config_of(8, 16, 64);
    config.reserved[13] = 1;
    cpu::configure_tiles(config);
  });
  expect_refused("#GP: reserved", [] { cpu::configure_tiles(config_of(9, 16, 64)); });
  expect_refused("#GP: a tile is too large", [] { cpu::configure_tiles(config_of(8, 17, 64)); });
  expect_refused("#GP: a tile is too large", [] { cpu::configure_tiles(config_of(8, 16, 68)); });
  expect_refused("#GP: a tile has rows", [] { cpu::configure_tiles(config_of(8, 0, 64)); });
  cpu::configure_tiles(config_of(4, 16, 64));
  expect_refused("#UD: the tile is not", [] { cpu::zero_tile<4>(); });
  expect_refused("#UD: operands are the same", [] { cpu::dot_tiles_s8<0, 1, 1>(); });
  TileConfig config = config_of(4, 16, 64);
  config.rows[0] = 8;
  cpu::configure_tiles(config);
  expect_refused("#UD: a and c differ", [] { cpu::dot_tiles_s8<0, 1, 2>(); });
  config = config_of(4, 16, 64);
  config.row_bytes[0] = 32;
  cpu::configure_tiles(config);
  expect_refused("#UD: b and c differ", [] { cpu::dot_tiles_bf16<0, 1, 2>(); });
  config = config_of(4, 16, 64);
  config.row_bytes[1] = 32;
  cpu::configure_tiles(config);
  expect_refused("#UD: a and b differ", [] { cpu::dot_tiles_bf16<0, 1, 2>(); });
  emulated::release();
}

// Tiles 0 = c, 1 = a, 2 = b: one row, one lane.
float dot_bf16(float c, const uint16_t (&a)[2], const uint16_t (&b)[2]) {
  cpu::configure_tiles(config_of(3, 1, 4));
  cpu::load_tile<0>(&c, 4);
  cpu::load_tile<1>(a, 4);
  cpu::load_tile<2>(b, 4);
  cpu::dot_tiles_bf16<0, 1, 2>();
  cpu::store_tile<0>(&c, 4);
  cpu::release_tiles();
  return c;
}

void check_values() {
  const uint16_t one = bf16_bits(1.0f);
  const uint16_t big = bf16_bits(std::ldexp(1.0f, 24));
  const uint16_t minus_big = bf16_bits(-std::ldexp(1.0f, 24));
  const uint16_t subnormal = 1;
  expect(dot_bf16(3.0f, {one, one}, {bf16_bits(2.0f), one}) == 6.0f, "tdpbf16ps");
  // the two halves are added first: 2^24 - 2^24, then 1
  expect(dot_bf16(1.0f, {big, minus_big}, {one, one}) == 1.0f, "tdpbf16ps, order");
  expect(dot_bf16(0.0f, {subnormal, 0}, {big, 0}) == 0.0f, "tdpbf16ps, subnormal operand");
  const uint16_t tiny = bf16_bits(std::ldexp(1.0f, -100));
  const uint16_t small = bf16_bits(std::ldexp(1.0f, -30));
  expect(dot_bf16(0.0f, {tiny, 0}, {small, 0}) == 0.0f, "tdpbf16ps, subnormal result");
  expect(dot_bf16(std::ldexp(1.0f, -130), {0, 0}, {0, 0}) == 0.0f, "tdpbf16ps, subnormal sum");
  expect(std::isnan(dot_bf16(0.0f, {0x7fc0, 0}, {0, 0})), "tdpbf16ps, NaN times 0");

  cpu::configure_tiles(config_of(3, 1, 4));
  int32_t c = 5;
  const int8_t a[4] = {-128, 127, 1, -1};
  const int8_t b[4] = {-128, 127, 2, 3};
  cpu::load_tile<0>(&c, 4);
  cpu::load_tile<1>(a, 4);
  cpu::load_tile<2>(b, 4);
  cpu::dot_tiles_s8<0, 1, 2>();
  cpu::store_tile<0>(&c, 4);
  cpu::release_tiles();
  expect(c == 5 + 128 * 128 + 127 * 127 + 2 - 3, "tdpbssd");
}

}  // namespace

void check_tile_instructions() {
  check_refusals();
  check_values();
}

void check_tile_use() {
  Random random(7);
  for (const cpu::Kind kind : {cpu::Kind::kS8x4, cpu::Kind::kBf16x2}) {
    const bool is_int8 = kind == cpu::Kind::kS8x4;
    const Operands operands = is_int8 ? Operands::kInt8 : Operands::kFloats;
    const GemmCase item = random_case(random, kind, true, operands, {40, 3000, 50});
    const int64_t before = emulated::tile_state().configurations;
    cpu::run_gemm(item.gemm, {});
    expect(emulated::tile_state().configurations == before + 1, "one configuration a block");
    expect(!emulated::tile_state().is_configured, "tiles are released");
  }
}

}  // namespace ftrt::test
