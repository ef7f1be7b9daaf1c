// The forward pass of linear layers as products of gemm.h, and the quantization of their input.
#include "ftrt/linear.h"

#include <memory>

#include "linear_parts.h"

namespace ftrt {
namespace {

float dequantized(const Weight& weight, int64_t n, int64_t k) {
  const int64_t steps = (weight.in_features + 3) / 4;
  const int64_t at = (n / 16 * steps + k / 4) * 64 + n % 16 * 4 + k % 4;
  const int64_t group = k / (weight.in_features / weight.groups);
  return static_cast<float>(weight.q[at]) * weight.scale[n * weight.groups + group];
}

// h = [drop(x) aᵀ | x[:, outliers]]
void hidden(const LinearForward& task, const Threads& threads) {
  const int64_t rank = task.update.rank;
  const int64_t outliers = task.quantized.outlier_count;
  const int64_t columns = rank + outliers;
  if (rank > 0) {
    Gemm gemm = product(task.x.rows, task.weight.in_features, rank, task.type);
    gemm.left = rows_operand(task.x, task.type);
    gemm.left.dropout = task.update.dropout;
    gemm.right.layout = Right::Layout::kColumns;
    gemm.right.data = task.update.a;
    gemm.right.type = task.type;
    gemm.right.stride = task.weight.in_features;
    write_to(gemm, task.h, Element::kFloat32, columns);
    cpu::run_gemm(gemm, threads);
  }
  for (int64_t m = 0; outliers > 0 && m < task.x.rows; ++m) {
    for (int64_t o = 0; o < outliers; ++o) {
      task.h[m * columns + rank + o] =
          read_float(task.x.data, task.type, m * task.x.stride + task.quantized.outliers[o]);
    }
  }
}

// (rank + outlier_count, out_features): [scaling · bᵀ ; Wᵀ[outliers]], what h is multiplied by.
// W8A16 has multiplied every column already: zeros for the outliers there.
std::unique_ptr<float[], Free> forward_factor(const LinearForward& task) {
  const int64_t rank = task.update.rank;
  const int64_t out = task.weight.out_features;
  auto factor = buffer<float>((rank + task.quantized.outlier_count) * out);
  for (int64_t r = 0; r < rank; ++r) {
    for (int64_t n = 0; n < out; ++n) {
      factor[r * out + n] =
          task.update.scaling * read_float(task.update.b, task.type, n * rank + r);
    }
  }
  for (int64_t o = 0; o < task.quantized.outlier_count; ++o) {
    for (int64_t n = 0; n < out; ++n) {
      const bool is_missing = task.quantized.q != nullptr;
      factor[(rank + o) * out + n] =
          is_missing ? dequantized(task.weight, n, task.quantized.outliers[o]) : 0.0f;
    }
  }
  return factor;
}

}  // namespace

void rows_forward(const LinearForward& task, const float* factor, const Threads& threads) {
  const Weight& weight = task.weight;
  Gemm gemm = product(task.x.rows, weight.in_features, weight.out_features, task.type);
  gemm.left = rows_operand(task.x, task.type);
  gemm.right = weight_operand(weight, true);
  if (task.quantized.q != nullptr) {
    gemm.left = rows_operand({task.quantized.q, task.x.rows, weight.in_features}, Element::kInt8);
    gemm.kind = cpu::int8_kind();
    gemm.epilogue.row_scale = task.quantized.scale;
  }
  if (weight.groups == 1) gemm.epilogue.col_scale = weight.scale;
  gemm.epilogue.bias = task.bias;
  gemm.epilogue.low_left = task.h;
  gemm.epilogue.low_right = factor;
  gemm.epilogue.rank = task.update.rank + task.quantized.outlier_count;
  write_to(gemm, task.y, task.type, weight.out_features);
  cpu::run_gemm(gemm, threads);
}

void linear_forward(const LinearForward& task, const Threads& threads) {
  std::unique_ptr<float[], Free> factor;
  if (task.update.rank + task.quantized.outlier_count > 0) {
    hidden(task, threads);
    factor = forward_factor(task);
  }
  if (suits_few_rows(task)) {
    few_rows_forward(task, factor.get(), threads);
  } else {
    rows_forward(task, factor.get(), threads);
  }
}

void quantize_tokens(const Rows& x, int64_t features, Element type, const int64_t* outliers,
                     int64_t outlier_count, int8_t* q, float* scale, const Threads& threads) {
  cpu::run_quantize({x.data, type, x.stride, features, nullptr, outliers, outlier_count, false, q,
                     scale},
                    x.rows, threads);
}

void quantize_channels(const Rows& weight, int64_t features, Element type, int8_t* q, float* scale,
                       const Threads& threads) {
  cpu::run_quantize({weight.data, type, weight.stride, features, nullptr, nullptr, 0, true, q,
                     scale},
                    weight.rows, threads);
}

}  // namespace ftrt
