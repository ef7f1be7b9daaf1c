// Random products of csrc/cpu/gemm.h with operands in buffers of exactly their size, and the same
// in float64.
#pragma once

#include <string>
#include <vector>

#include "check.h"
#include "gemm.h"

namespace ftrt::test {

// A product with the memory behind its pointers. Vectors hold as many elements as the operand has.
struct GemmCase {
  cpu::Gemm gemm;
  std::vector<uint8_t> left, right, c;
  std::vector<float> depth_scale, group_scale, row_scale, col_scale, bias, low_left, low_right;
  std::string text;
};

struct Shape {
  int64_t rows, depth, cols;
};

enum class Operands { kInt8, kFloats };

// has_bf16: the level has a product of bfloat16, so the low-rank part may be one.
GemmCase random_case(Random& random, cpu::Kind kind, bool has_bf16, Operands operands,
                     Shape shape);

// Compares what the kernel wrote to c with float64.
void expect_right(const GemmCase& item, const std::string& where);

}  // namespace ftrt::test
