// W8A16 for few rows of bfloat16: generation, not training.
//
// So few rows wait for the weights to arrive, and widening each weight to a float would take longer
// than that. The int8 product reads the packed weights as they are, so x becomes three int8
// numbers, x = scale[m] · (high + middle / 254 + low / 254²): 24-bit fixed point. What is left of
// an element is at most max |x_m| / 2^24, which a float32 sum with that element loses too. Two
// numbers would not do: language models have columns a thousand times the others, with small
// weights.
#include <cmath>
#include <memory>

#include "linear_parts.h"

namespace ftrt {
namespace {

constexpr int64_t kParts = 3;

// q (kParts · rows, in_features) and scale (kParts · rows): high above middle above low, each the
// quantized rest of those before it.
void split(const LinearForward& task, int8_t* q, float* scale, const Threads& threads) {
  const int64_t rows = task.x.rows;
  const int64_t in = task.weight.in_features;
  auto rest = buffer<float>(rows * in);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < in; ++k) {
      rest[m * in + k] = read_float(task.x.data, Element::kBFloat16, m * task.x.stride + k);
    }
  }
  for (int64_t part = 0; part < kParts; ++part, q += rows * in, scale += rows) {
    quantize_tokens({rest.get(), rows, in}, in, Element::kFloat32, nullptr, 0, q, scale, threads);
    for (int64_t m = 0; part + 1 < kParts && m < rows; ++m) {
      float* left = rest.get() + m * in;
      // in double: scale · q has more digits than a float
      for (int64_t k = 0; k < in; ++k) {
        left[k] = static_cast<float>(left[k] - static_cast<double>(scale[m]) * q[m * in + k]);
      }
    }
  }
}

}  // namespace

bool suits_few_rows(const LinearForward& task) {
  // above, three products take longer than one on bfloat16
  constexpr int64_t kMaxRows = 8;
  return task.quantized.q == nullptr && task.type == Element::kBFloat16 &&
         task.weight.groups == 1 && task.x.rows <= kMaxRows &&
         task.weight.in_features <= kMaxInt8Depth && cpu::int8_kind() == cpu::Kind::kS8x4;
}

void few_rows_forward(const LinearForward& task, const float* factor, const Threads& threads) {
  const int64_t rows = task.x.rows;
  const int64_t out = task.weight.out_features;
  const int64_t columns = task.update.rank + task.quantized.outlier_count;
  auto q = buffer<int8_t>(kParts * rows * task.weight.in_features);
  auto scale = buffer<float>(kParts * rows);
  split(task, q.get(), scale.get(), threads);
  // the update goes to the high part alone
  const int64_t high = rows * columns;
  auto h = buffer<float>(kParts * high);
  for (int64_t i = 0; i < kParts * high; ++i) h[i] = i < high ? task.h[i] : 0.0f;
  auto sums = buffer<float>(kParts * rows * out);
  Gemm gemm = product(kParts * rows, task.weight.in_features, out, task.type);
  gemm.left = rows_operand({q.get(), kParts * rows, task.weight.in_features}, Element::kInt8);
  gemm.right = weight_operand(task.weight, true);
  gemm.kind = cpu::int8_kind();
  gemm.epilogue.row_scale = scale.get();
  gemm.epilogue.col_scale = task.weight.scale;
  gemm.epilogue.low_left = h.get();
  gemm.epilogue.low_right = factor;
  gemm.epilogue.rank = columns;
  write_to(gemm, sums.get(), Element::kFloat32, out);
  cpu::run_gemm(gemm, threads);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < out; ++n) {
      const float bias = task.bias == nullptr ? 0.0f : task.bias[n];
      const float low = sums[(rows + m) * out + n] + sums[(2 * rows + m) * out + n];
      const float y = sums[m * out + n] + low + bias;
      write_float(task.y, Element::kBFloat16, m * out + n, y);
    }
  }
  // int8 has no infinity: such a row is computed on floats
  for (int64_t m = 0; m < rows; ++m) {
    if (std::isfinite(scale[m])) continue;
    const int64_t bytes = element_bytes(task.type);
    LinearForward row = task;
    row.x.data = static_cast<const uint8_t*>(task.x.data) + m * task.x.stride * bytes;
    row.x.rows = 1;
    row.h = task.h + m * columns;
    row.y = static_cast<uint8_t*>(task.y) + m * out * bytes;
    rows_forward(row, factor, threads);
  }
}

}  // namespace ftrt
