#include "gemm_cases.h"

#include <cmath>

namespace ftrt::test {
namespace {

using cpu::Gemm;
using cpu::Kind;
using cpu::Left;
using cpu::Right;

// `count` numbers in (-1, 1), or whole ones within ±127.
std::vector<uint8_t> numbers(Random& random, Element type, int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count * element_bytes(type)));
  bytes.reserve(1);  // an empty operand has an address too
  for (int64_t i = 0; i < count; ++i) {
    const float value = random.number();
    if (type == Element::kFloat32) std::memcpy(bytes.data() + 4 * i, &value, 4);
    const uint16_t half = bf16_bits(value);
    if (type == Element::kBFloat16) std::memcpy(bytes.data() + 2 * i, &half, 2);
    if (type == Element::kInt8) bytes[i] = static_cast<uint8_t>(random.below(255) - 127);
  }
  return bytes;
}

std::vector<float> floats(Random& random, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = random.number();
  return values;
}

// Elements of `count` rows of `length` elements at `stride`: the last one has no slack behind it.
int64_t extent(int64_t count, int64_t length, int64_t stride) {
  return count == 0 || length == 0 ? 0 : (count - 1) * stride + length;
}

// Exact in float.
float value_at(const void* data, Element type, int64_t index) {
  if (type == Element::kFloat32) {
    float value;
    std::memcpy(&value, static_cast<const uint8_t*>(data) + 4 * index, 4);
    return value;
  }
  if (type == Element::kInt8) return static_cast<const int8_t*>(data)[index];
  uint16_t half;
  std::memcpy(&half, static_cast<const uint8_t*>(data) + 2 * index, 2);
  return static_cast<float>(bf16_value(half));
}

float keep_factor(const Dropout& dropout, int64_t row, int64_t col) {
  if (dropout.threshold == 0) return 1.0f;
  const uint32_t step = static_cast<uint32_t>(col) * kDropoutStep;
  const bool is_kept = dropout_mix(dropout_row_key(dropout, row) ^ step) >= dropout.threshold;
  return is_kept ? dropout.factor : 0.0f;
}

// As the packing computes it: in float32, then rounded where the kind is bfloat16.
double left_at(const Gemm& gemm, int64_t m, int64_t k) {
  const Left& left = gemm.left;
  const int64_t at = left.transposed ? k * left.stride + m : m * left.stride + k;
  float value = value_at(left.data, left.type, at);
  if (left.depth_scale != nullptr) value *= left.depth_scale[k];
  value *= keep_factor(left.dropout, m, k);
  return gemm.kind == Kind::kBf16x2 ? as_bf16(value) : value;
}

double right_at(const Gemm& gemm, int64_t k, int64_t n) {
  const Right& right = gemm.right;
  float value;
  if (right.layout == Right::Layout::kRows) {
    value = value_at(right.data, right.type, k * right.stride + n);
    value *= keep_factor(right.dropout, k, n);
  } else if (right.layout == Right::Layout::kColumns) {
    value = value_at(right.data, right.type, n * right.stride + k);
  } else {
    const bool is_forward = right.layout == Right::Layout::kInt8Forward;
    const int64_t out = is_forward ? n : k;
    const int64_t in = is_forward ? k : n;
    const int64_t at = (out / 16 * right.panel_steps + in / 4) * 64 + out % 16 * 4 + in % 4;
    value = value_at(right.data, Element::kInt8, at);
    if (right.scale != nullptr) value *= right.scale[out * right.groups + in / right.group_size];
  }
  return gemm.kind == Kind::kBf16x2 ? as_bf16(value) : value;
}

void random_dropout(Random& random, Dropout& dropout) {
  dropout.seed = random.next();
  dropout.threshold = 1u << 30;
  dropout.factor = 4.0f / 3.0f;
}

void random_left(Random& random, GemmCase& item, Operands operands) {
  Gemm& gemm = item.gemm;
  Left& left = gemm.left;
  left.type = operands == Operands::kInt8 ? Element::kInt8
              : random.coin()             ? Element::kFloat32
                                          : Element::kBFloat16;
  left.transposed = left.type == Element::kFloat32 && random.below(4) == 0;
  const int64_t length = left.transposed ? gemm.rows : gemm.depth;
  const int64_t count = left.transposed ? gemm.depth : gemm.rows;
  left.stride = length + (random.coin() ? 0 : random.below(5));
  item.left = numbers(random, left.type, extent(count, length, left.stride));
  left.data = item.left.data();
  if (operands == Operands::kInt8) return;
  if (random.below(3) == 0) {
    item.depth_scale = floats(random, gemm.depth);
    left.depth_scale = item.depth_scale.data();
  }
  if (random.below(3) == 0) random_dropout(random, left.dropout);
}

// Packed int8 weights, of which those outside the matrix are zero.
void random_weight(Random& random, GemmCase& item, Operands operands) {
  Gemm& gemm = item.gemm;
  Right& right = gemm.right;
  const bool is_forward = right.layout == Right::Layout::kInt8Forward;
  const int64_t in = is_forward ? gemm.depth : gemm.cols;
  const int64_t out = is_forward ? gemm.cols : gemm.depth;
  right.type = Element::kInt8;
  right.panel_steps = (in + 3) / 4;
  item.right.assign(static_cast<size_t>((out + 15) / 16 * right.panel_steps * 64), 0);
  for (int64_t n = 0; n < out; ++n) {
    for (int64_t k = 0; k < in; ++k) {
      const int64_t at = (n / 16 * right.panel_steps + k / 4) * 64 + n % 16 * 4 + k % 4;
      item.right[at] = static_cast<uint8_t>(random.below(256) - 128);
    }
  }
  const int64_t groups[] = {1, 2, 3, 4};
  right.groups = random.one_of(groups);
  if (operands == Operands::kFloats && in > 0 && in % right.groups == 0 && random.coin()) {
    right.group_size = in / right.groups;
    item.group_scale = floats(random, out * right.groups);
    right.scale = item.group_scale.data();
  }
}

void random_right(Random& random, GemmCase& item, Operands operands) {
  Gemm& gemm = item.gemm;
  Right& right = gemm.right;
  using Layout = Right::Layout;
  const Layout layouts[] = {Layout::kInt8Forward, Layout::kInt8Backward, Layout::kRows,
                            Layout::kColumns};
  right.layout = layouts[random.below(operands == Operands::kInt8 ? 2 : 4)];
  if (right.layout == Layout::kInt8Forward || right.layout == Layout::kInt8Backward) {
    random_weight(random, item, operands);
  } else {
    const Element types[] = {Element::kFloat32, Element::kBFloat16, Element::kInt8};
    const bool is_rows = right.layout == Layout::kRows;
    right.type = types[random.below(is_rows ? 3 : 2)];
    const int64_t length = is_rows ? gemm.cols : gemm.depth;
    right.stride = length + (random.coin() ? 0 : random.below(5));
    item.right =
        numbers(random, right.type, extent(is_rows ? gemm.depth : gemm.cols, length, right.stride));
    if (is_rows && random.below(3) == 0) random_dropout(random, right.dropout);
  }
  right.data = item.right.data();
}

void random_epilogue(Random& random, GemmCase& item, Operands operands, bool has_bf16) {
  Gemm& gemm = item.gemm;
  cpu::Epilogue& e = gemm.epilogue;
  if (operands == Operands::kInt8 || random.coin()) {
    item.row_scale = floats(random, gemm.rows);
    e.row_scale = item.row_scale.data();
  }
  if (random.coin()) {
    item.col_scale = floats(random, gemm.cols);
    e.col_scale = item.col_scale.data();
  }
  if (random.coin()) {
    item.bias = floats(random, gemm.cols);
    e.bias = item.bias.data();
  }
  const int64_t ranks[] = {0, 0, 1, 8, 17, 64, 256, 300};
  e.rank = random.one_of(ranks);
  gemm.low_kind = has_bf16 && random.coin() ? Kind::kBf16x2 : Kind::kF32;
  if (e.rank > 0) {
    item.low_left = floats(random, gemm.rows * e.rank);
    item.low_right = floats(random, gemm.cols * e.rank);
    e.low_left = item.low_left.data();
    e.low_right = item.low_right.data();
    if (random.coin()) random_dropout(random, e.dropout);
  }
  e.type = random.coin() ? Element::kFloat32 : Element::kBFloat16;
  e.stride = gemm.cols + (random.coin() ? 0 : random.below(5));
  // 0x7f: a value that no result has, to see what was not written
  item.c.assign(
      static_cast<size_t>(extent(gemm.rows, gemm.cols, e.stride) * element_bytes(e.type)), 0x7f);
  e.c = item.c.data();
}

}  // namespace

GemmCase random_case(Random& random, Kind kind, bool has_bf16, Operands operands, Shape shape) {
  GemmCase item;
  Gemm& gemm = item.gemm;
  gemm.rows = shape.rows;
  gemm.depth = shape.depth;
  gemm.cols = shape.cols;
  gemm.kind = kind;
  random_left(random, item, operands);
  random_right(random, item, operands);
  random_epilogue(random, item, operands, has_bf16);
  item.text = "rows " + std::to_string(gemm.rows) + ", depth " + std::to_string(gemm.depth) +
              ", cols " + std::to_string(gemm.cols) + ", kind " +
              std::to_string(static_cast<int>(kind)) + ", layout " +
              std::to_string(static_cast<int>(gemm.right.layout)) + ", rank " +
              std::to_string(gemm.epilogue.rank) + ", low kind " +
              std::to_string(static_cast<int>(gemm.low_kind));
  return item;
}

void expect_right(const GemmCase& item, const std::string& where) {
  const Gemm& gemm = item.gemm;
  const cpu::Epilogue& e = gemm.epilogue;
  const bool is_low_bf16 = gemm.low_kind == Kind::kBf16x2;
  std::vector<double> b(static_cast<size_t>(gemm.depth * gemm.cols));
  for (int64_t k = 0; k < gemm.depth; ++k) {
    for (int64_t n = 0; n < gemm.cols; ++n) b[k * gemm.cols + n] = right_at(gemm, k, n);
  }
  const bool is_exact = cpu::sums_are_int32(gemm.kind);
  const double terms = (is_exact ? 0.0 : gemm.depth) + static_cast<double>(e.rank);
  const double unit = (8 + 2 * std::sqrt(terms)) / (1 << 24);
  for (int64_t m = 0; m < gemm.rows; ++m) {
    std::vector<double> sums(static_cast<size_t>(gemm.cols)), sizes(sums);
    for (int64_t k = 0; k < gemm.depth; ++k) {
      const double a = left_at(gemm, m, k);
      for (int64_t n = 0; n < gemm.cols; ++n) {
        sums[n] += a * b[k * gemm.cols + n];
        sizes[n] += std::fabs(a * b[k * gemm.cols + n]);
      }
    }
    for (int64_t n = 0; n < gemm.cols; ++n) {
      const double scale = (e.row_scale == nullptr ? 1.0 : e.row_scale[m]) *
                           (e.col_scale == nullptr ? 1.0 : e.col_scale[n]);
      double want = sums[n] * scale + (e.bias == nullptr ? 0.0 : e.bias[n]);
      double size = (is_exact ? std::fabs(sums[n]) : sizes[n]) * std::fabs(scale) + 1;
      const double kept = keep_factor(e.dropout, m, n);
      for (int64_t r = 0; r < e.rank; ++r) {
        double x = e.low_left[m * e.rank + r];
        double y = e.low_right[r * gemm.cols + n];
        if (is_low_bf16) x = as_bf16(x), y = as_bf16(y);
        want += kept * x * y;
        size += kept * std::fabs(x * y);
      }
      const double got = value_at(e.c, e.type, m * e.stride + n);
      const double rounding = e.type == Element::kBFloat16 ? std::fabs(want) / 256 : 0.0;
      if (!expect(std::fabs(got - want) <= size * unit + rounding, where)) {
        std::printf("  c[%ld, %ld] is %.9g, not %.9g: %s\n", static_cast<long>(m),
                    static_cast<long>(n), got, want, item.text.c_str());
        return;
      }
    }
  }
}

}  // namespace ftrt::test
