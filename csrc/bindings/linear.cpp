// The CPU implementations of ftrt's ops on torch's stable ABI. Schemas, autograd and references are
// in ftrt/ops/; the checks here are the ones a kernel needs not to read beyond its operands.
#include "ftrt/linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "operands.h"

namespace ftrt::bindings {
namespace {

Weight int8_weight(const char* op, const Tensor& qweight, const Tensor& scale,
                   int64_t in_features) {
  check_weight(op, qweight, scale, in_features);
  Weight weight;
  weight.q = static_cast<const int8_t*>(qweight.const_data_ptr());
  weight.scale = static_cast<const float*>(scale.const_data_ptr());
  weight.out_features = scale.size(0);
  weight.in_features = in_features;
  weight.groups = scale.size(1);
  return weight;
}

// Factors as contiguous matrices in the dtype of x; float32 ones beside bfloat16 are rounded.
struct Factors {
  Tensor a, b;
  LowRank update;
};

Factors factors_of(const char* op, const Tensor& a, const Tensor& b, double scaling,
                   double dropout, const Optional& seed, ScalarType type, int64_t in_features,
                   int64_t out_features) {
  check_factors(op, a, b, type, in_features, out_features);
  check_dropout(op, dropout, seed);
  Factors factors = {torch::stable::contiguous(torch::stable::to(a, type)),
                     torch::stable::contiguous(torch::stable::to(b, type)),
                     {}};
  factors.update.a = factors.a.const_data_ptr();
  factors.update.b = factors.b.const_data_ptr();
  factors.update.rank = a.size(0);
  factors.update.scaling = static_cast<float>(scaling);
  if (dropout > 0) {
    factors.update.dropout.seed =
        static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr()));
    factors.update.dropout.threshold = static_cast<uint32_t>(std::floor(dropout * 4294967296.0));
    factors.update.dropout.factor = static_cast<float>(1.0 / (1.0 - dropout));
  }
  return factors;
}

QuantizedInput quantized_input(const char* op, const Optional& xq, const Optional& xscale,
                               Optional& outliers, const Tensor& scale, int64_t rows,
                               int64_t in_features) {
  check_quantized(op, xq, xscale, scale, rows, in_features);
  QuantizedInput quantized;
  if (xscale.has_value()) {
    quantized.scale = static_cast<const float*>(xscale->const_data_ptr());
    if (xq.has_value()) quantized.q = static_cast<const int8_t*>(xq->const_data_ptr());
  }
  quantized.outliers = outlier_columns(op, outliers, in_features);
  quantized.outlier_count = outliers.has_value() ? outliers->size(0) : 0;
  return quantized;
}

// The bias as float32; the tensor keeps it alive.
const float* float_bias(const char* op, Optional& bias, int64_t out_features) {
  if (!bias.has_value()) return nullptr;
  check_bias(op, *bias, out_features);
  bias = torch::stable::contiguous(torch::stable::to(*bias, ScalarType::Float));
  return static_cast<const float*>(bias->const_data_ptr());
}

Tensor int8_linear(Tensor x, Optional xq, Optional xscale, Tensor qweight, Tensor scale,
                   Optional bias, Optional outliers) {
  constexpr const char* kOp = "ftrt::int8_linear";
  LinearForward task = {};
  task.type = element_of(kOp, "x", x);
  task.weight = int8_weight(kOp, qweight, scale, last_size(x));
  const Matrix matrix = as_matrix(x, task.weight.in_features);
  task.x = matrix.rows;
  check_given_together(kOp, xq, xscale);
  task.quantized =
      quantized_input(kOp, xq, xscale, outliers, scale, task.x.rows, task.weight.in_features);
  task.bias = float_bias(kOp, bias, task.weight.out_features);
  Tensor h = torch::stable::new_empty(
      x, std::vector<int64_t>{task.x.rows, task.quantized.outlier_count}, ScalarType::Float);
  Tensor y = empty_result(x, task.weight.out_features);
  task.h = static_cast<float*>(h.mutable_data_ptr());
  task.y = y.mutable_data_ptr();
  linear_forward(task, torch_threads());
  return y;
}

Tensor int8_linear_dx(Tensor grad, Tensor qweight, Tensor scale, int64_t in_features,
                      bool quantize) {
  constexpr const char* kOp = "ftrt::int8_linear_dx";
  LinearBackward task = {};
  task.type = element_of(kOp, "grad", grad);
  task.weight = int8_weight(kOp, qweight, scale, in_features);
  check_features(kOp, "grad", grad, "out_features", task.weight.out_features, qweight,
                 "qweight");
  const Matrix matrix = as_matrix(grad, task.weight.out_features);
  task.dy = matrix.rows;
  if (quantize) {
    check_per_channel(kOp, scale);
    check_int8_depth(kOp, "out_features", task.weight.out_features);
    task.quantized.scale = task.weight.scale;
  }
  Tensor dx = empty_result(grad, in_features);
  task.dx = dx.mutable_data_ptr();
  linear_backward(task, torch_threads());
  return dx;
}

std::tuple<Tensor, Tensor> int8_lora_linear(Tensor x, Optional xq, Optional xscale, Tensor qweight,
                                            Tensor scale, Optional bias, Tensor a, Tensor b,
                                            double scaling, Optional outliers, double dropout,
                                            Optional seed) {
  constexpr const char* kOp = "ftrt::int8_lora_linear";
  LinearForward task = {};
  task.type = element_of(kOp, "x", x);
  const int64_t in_features = last_size(x);
  task.weight = int8_weight(kOp, qweight, scale, in_features);
  const int64_t out_features = task.weight.out_features;
  const Matrix matrix = as_matrix(x, in_features);
  task.x = matrix.rows;
  check_given_together(kOp, xq, xscale);
  task.quantized = quantized_input(kOp, xq, xscale, outliers, scale, task.x.rows, in_features);
  task.bias = float_bias(kOp, bias, out_features);
  const Factors factors = factors_of(kOp, a, b, scaling, dropout, seed, x.scalar_type(),
                                     in_features, out_features);
  task.update = factors.update;
  Tensor h = torch::stable::new_empty(
      x,
      std::vector<int64_t>{task.x.rows, task.update.rank + task.quantized.outlier_count},
      ScalarType::Float);
  Tensor y = empty_result(x, out_features);
  task.h = static_cast<float*>(h.mutable_data_ptr());
  task.y = y.mutable_data_ptr();
  linear_forward(task, torch_threads());
  return {y, h};
}

// The three gradients, empty where they are not needed.
struct Gradients {
  Tensor dx, da, db;
};

Gradients gradients(LinearBackward& task, const Tensor& grad, const Tensor& a, const Tensor& b,
                    bool need_x, bool need_a, bool need_b) {
  const auto empty = [](const Tensor& like, ScalarType type) {
    return torch::stable::new_empty(like, std::vector<int64_t>{0}, type);
  };
  const ScalarType type = grad.scalar_type();
  const std::vector<int64_t> a_shape(a.sizes().begin(), a.sizes().end());
  const std::vector<int64_t> b_shape(b.sizes().begin(), b.sizes().end());
  Gradients result = {
      need_x ? empty_result(grad, task.weight.in_features) : empty(grad, type),
      need_a ? torch::stable::new_empty(a, a_shape, type) : empty(a, a.scalar_type()),
      need_b ? torch::stable::new_empty(b, b_shape, type) : empty(b, b.scalar_type())};
  task.dx = need_x ? result.dx.mutable_data_ptr() : nullptr;
  task.da = need_a ? result.da.mutable_data_ptr() : nullptr;
  task.db = need_b ? result.db.mutable_data_ptr() : nullptr;
  linear_backward(task, torch_threads());
  if (need_a) result.da = torch::stable::to(result.da, a.scalar_type());
  if (need_b) result.db = torch::stable::to(result.db, b.scalar_type());
  return result;
}

std::tuple<Tensor, Tensor, Tensor> int8_lora_linear_backward(
    Tensor grad, Optional x, Optional xq, Optional xscale, Tensor h, Tensor qweight, Tensor scale,
    Tensor a, Tensor b, double scaling, Optional outliers, double dropout, Optional seed,
    bool need_x, bool need_a, bool need_b) {
  constexpr const char* kOp = "ftrt::int8_lora_linear_backward";
  LinearBackward task = {};
  task.type = element_of(kOp, "grad", grad);
  const int64_t in_features = last_size(a);
  task.weight = int8_weight(kOp, qweight, scale, in_features);
  const int64_t out_features = task.weight.out_features;
  check_features(kOp, "grad", grad, "out_features", out_features, qweight, "qweight");
  const Matrix matrix = as_matrix(grad, out_features);
  task.dy = matrix.rows;
  const Factors factors = factors_of(kOp, a, b, scaling, dropout, seed, grad.scalar_type(),
                                     in_features, out_features);
  task.update = factors.update;
  task.quantized = quantized_input(kOp, xq, xscale, outliers, scale, task.dy.rows, in_features);
  if (need_x && xscale.has_value()) check_int8_depth(kOp, "out_features", out_features);
  const Tensor hidden = torch::stable::contiguous(h);
  check_hidden(kOp, h, task.dy.rows, task.update.rank + task.quantized.outlier_count);
  task.h = static_cast<const float*>(hidden.const_data_ptr());
  Matrix input = {grad, {}};
  if (need_a && !xq.has_value()) {
    check_saved_input(kOp, x, grad, task.dy.rows, in_features);
    input = as_matrix(*x, in_features);
    task.x = input.rows;
  }
  const Gradients result = gradients(task, grad, a, b, need_x, need_a, need_b);
  return {result.dx, result.da, result.db};
}

}  // namespace
}  // namespace ftrt::bindings

STABLE_TORCH_LIBRARY_IMPL(ftrt, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&ftrt::bindings::int8_linear));
  m.impl("int8_linear_dx", TORCH_BOX(&ftrt::bindings::int8_linear_dx));
  m.impl("int8_lora_linear", TORCH_BOX(&ftrt::bindings::int8_lora_linear));
  m.impl("int8_lora_linear_backward", TORCH_BOX(&ftrt::bindings::int8_lora_linear_backward));
}
