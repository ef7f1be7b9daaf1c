// The CPU implementations of the ops that quantize, as in linear.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "checks.h"
#include "ftrt/linear.h"
#include "operands.h"

namespace ftrt::bindings {
namespace {

std::tuple<Tensor, Tensor> quantize_per_token(Tensor x, Optional outliers) {
  constexpr const char* kOp = "ftrt::quantize_per_token";
  const Element type = element_of(kOp, "x", x);
  const int64_t features = last_size(x);
  if (features == 0) {
    fail(kOp, "x must be (..., in_features) with in_features at least 1", describe("x", x));
  }
  const int64_t* columns = outlier_columns(kOp, outliers, features);
  const Matrix matrix = as_matrix(x, features);
  const int64_t rows = matrix.rows.rows;
  Tensor q = torch::stable::new_empty(x, std::vector<int64_t>{rows, features}, ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, std::vector<int64_t>{rows}, ScalarType::Float);
  quantize_tokens(matrix.rows, features, type, columns, columns == nullptr ? 0 : outliers->size(0),
                  static_cast<int8_t*>(q.mutable_data_ptr()),
                  static_cast<float*>(scale.mutable_data_ptr()), torch_threads());
  return {q, scale};
}

std::tuple<Tensor, Tensor> quantize_per_channel(Tensor weight) {
  constexpr const char* kOp = "ftrt::quantize_per_channel";
  if (weight.dim() != 2 || weight.size(1) == 0) {
    fail(kOp, "weight must be (out_features, in_features) with in_features at least 1",
         describe("weight", weight));
  }
  Tensor rows = weight;
  if (weight.scalar_type() == ScalarType::Half || weight.scalar_type() == ScalarType::Double) {
    rows = torch::stable::to(weight, ScalarType::Float);
  }
  const Element type = element_of(kOp, "weight", rows);
  const Matrix matrix = as_matrix(rows, weight.size(1));
  const int64_t out = weight.size(0);
  Tensor q = torch::stable::new_empty(weight, std::vector<int64_t>{out, weight.size(1)},
                                      ScalarType::Char);
  Tensor scale = torch::stable::new_empty(weight, std::vector<int64_t>{out, 1}, ScalarType::Float);
  quantize_channels(matrix.rows, weight.size(1), type,
                    static_cast<int8_t*>(q.mutable_data_ptr()),
                    static_cast<float*>(scale.mutable_data_ptr()), torch_threads());
  return {q, scale};
}

}  // namespace
}  // namespace ftrt::bindings

STABLE_TORCH_LIBRARY_IMPL(ftrt, CPU, m) {
  m.impl("quantize_per_channel", TORCH_BOX(&ftrt::bindings::quantize_per_channel));
  m.impl("quantize_per_token", TORCH_BOX(&ftrt::bindings::quantize_per_token));
}
