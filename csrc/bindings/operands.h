// Torch's tensors as the kernels take them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "checks.h"
#include "ftrt/linear.h"

namespace ftrt::bindings {

using Optional = std::optional<Tensor>;

inline Element element_of(const char* op, const char* name, const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float) return Element::kFloat32;
  if (x.scalar_type() == ScalarType::BFloat16) return Element::kBFloat16;
  fail(op, "the CPU kernel takes float32 or bfloat16",
       describe(name, x) + ". Cast " + name + ", or load the model in one of them");
}

inline Threads torch_threads() {
  const auto parallel_for = [](int64_t begin, int64_t end, int64_t grain, ParallelBody body,
                               void* context) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
  };
  return {static_cast<int64_t>(torch::stable::get_num_threads()), parallel_for};
}

// x: (..., features) as a matrix whose last stride is 1; a copy only where no view is one.
struct Matrix {
  Tensor tensor;
  Rows rows;
};

inline Matrix as_matrix(const Tensor& x, int64_t features) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  Tensor matrix = x;
  if (x.dim() != 2) matrix = torch::stable::reshape(x, std::vector<int64_t>{rows, features});
  if (matrix.stride(1) != 1 && features > 1) matrix = torch::stable::contiguous(matrix);
  const int64_t stride = rows > 1 ? matrix.stride(0) : features;
  return {matrix, {matrix.const_data_ptr(), rows, stride}};
}

inline Tensor empty_result(const Tensor& like, int64_t features) {
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = features;
  return torch::stable::new_empty(like, shape);
}

inline int64_t last_size(const Tensor& x) { return x.dim() == 0 ? 0 : x.size(x.dim() - 1); }

// The columns as a contiguous list; the tensor keeps it alive.
inline const int64_t* outlier_columns(const char* op, Optional& outliers, int64_t in_features) {
  check_outliers(op, outliers, in_features);
  if (!outliers.has_value()) return nullptr;
  outliers = torch::stable::contiguous(*outliers);
  return static_cast<const int64_t*>(outliers->const_data_ptr());
}

}  // namespace ftrt::bindings
