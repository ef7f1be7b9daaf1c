// ftrt::int8_linear and ftrt::int8_linear_dx for CPU tensors, on torch's stable ABI. Schemas,
// autograd and the reference are in ftrt/ops/int8_linear.py; the checks here are the ones a kernel
// needs not to read beyond its operands.
#include "ftrt/int8_linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "checks.h"

namespace ftrt::bindings {
namespace {

DType dtype_of(const char* op, const char* name, const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float) return DType::kFloat32;
  if (x.scalar_type() == ScalarType::BFloat16) return DType::kBFloat16;
  fail(op, "the CPU kernel takes float32 or bfloat16",
       describe(name, x) + ". Cast " + name + ", or load the model in one of them");
}

// qweight: (out_features, in_features) int8; scale: (out_features, groups) float32; both row-major.
Int8Weight weight_of(const char* op, const Tensor& qweight, const Tensor& scale) {
  check_weight(op, qweight, scale);
  return {static_cast<const int8_t*>(qweight.const_data_ptr()),
          static_cast<const float*>(scale.const_data_ptr()), qweight.size(0), qweight.size(1),
          scale.size(1)};
}

Threads torch_threads() {
  const auto parallel_for = [](int64_t begin, int64_t end, int64_t grain, ParallelBody body,
                               void* context) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
  };
  return {static_cast<int64_t>(torch::stable::get_num_threads()), parallel_for};
}

// x: (..., features) as a matrix (rows, features) whose last stride is 1; a copy only where no view
// is one.
struct Matrix {
  Tensor tensor;
  int64_t rows, stride;
};

Matrix as_matrix(const Tensor& x, int64_t features) {
  const int64_t rows = features == 0 ? 0 : x.numel() / features;
  Tensor matrix = torch::stable::reshape(x, std::vector<int64_t>{rows, features});
  if (matrix.stride(1) != 1 && features > 1) matrix = torch::stable::contiguous(matrix);
  return {matrix, rows, matrix.stride(0)};
}

Tensor empty_result(const Tensor& like, int64_t features) {
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = features;
  return torch::stable::new_empty(like, shape);
}

Tensor int8_linear_cpu(Tensor x, Tensor qweight, Tensor scale, std::optional<Tensor> bias) {
  constexpr const char* kOp = "ftrt::int8_linear";
  const Int8Weight weight = weight_of(kOp, qweight, scale);
  const DType dtype = dtype_of(kOp, "x", x);
  check_features(kOp, "x", x, "in_features", weight.in_features, qweight);
  std::optional<Tensor> bias32;
  if (bias.has_value()) {
    check_bias(kOp, *bias, weight.out_features);
    bias32 = torch::stable::contiguous(torch::stable::to(*bias, ScalarType::Float));
  }
  const Matrix matrix = as_matrix(x, weight.in_features);
  Tensor y = empty_result(x, weight.out_features);
  const float* bias_data = bias32 ? static_cast<const float*>(bias32->const_data_ptr()) : nullptr;
  int8_linear(matrix.tensor.const_data_ptr(), matrix.rows, matrix.stride, dtype, weight, bias_data,
              y.mutable_data_ptr(), torch_threads());
  return y;
}

Tensor int8_linear_dx_cpu(Tensor grad, Tensor qweight, Tensor scale) {
  constexpr const char* kOp = "ftrt::int8_linear_dx";
  const Int8Weight weight = weight_of(kOp, qweight, scale);
  const DType dtype = dtype_of(kOp, "grad", grad);
  check_features(kOp, "grad", grad, "out_features", weight.out_features, qweight);
  const Matrix matrix = as_matrix(grad, weight.out_features);
  Tensor dx = empty_result(grad, weight.in_features);
  int8_linear_dx(matrix.tensor.const_data_ptr(), matrix.rows, matrix.stride, dtype, weight,
                 dx.mutable_data_ptr(), torch_threads());
  return dx;
}

}  // namespace
}  // namespace ftrt::bindings

STABLE_TORCH_LIBRARY_IMPL(ftrt, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&ftrt::bindings::int8_linear_cpu));
  m.impl("int8_linear_dx", TORCH_BOX(&ftrt::bindings::int8_linear_dx_cpu));
}
