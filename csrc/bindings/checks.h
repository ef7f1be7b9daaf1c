// Operand checks of the CPU ops. The texts are those of ftrt/ops/checks.py: which one a user meets
// depends only on where the op runs.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace ftrt::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The name torch gives the dtype in Python.
inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(type);
  }
}

// "x (2, 3) float32"
inline std::string describe(const char* name, const Tensor& tensor) {
  std::ostringstream text;
  text << name << " (";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i == 0 ? "" : ", ") << tensor.size(i);
  text << (tensor.dim() == 1 ? ",) " : ") ") << dtype_name(tensor.scalar_type());
  return text.str();
}

[[noreturn]] inline void fail(const std::string& op, const std::string& rule,
                              const std::string& got) {
  throw std::runtime_error(op + ": " + rule + "; got " + got);
}

inline void check_weight(const char* op, const Tensor& qweight, const Tensor& scale) {
  const std::string got = describe("qweight", qweight) + ", " + describe("scale", scale);
  if (qweight.dim() != 2 || qweight.scalar_type() != ScalarType::Char || !qweight.is_contiguous()) {
    fail(op, "qweight must be (out_features, in_features) int8, contiguous", got);
  }
  if (scale.dim() != 2 || scale.scalar_type() != ScalarType::Float || !scale.is_contiguous()) {
    fail(op, "scale must be (out_features, groups) float32, contiguous", got);
  }
  if (scale.size(0) != qweight.size(0))
    fail(op, "scale and qweight must have the same out_features", got);
  if (qweight.size(1) == 0) fail(op, "in_features must be at least 1", got);
  if (scale.size(1) == 0 || qweight.size(1) % scale.size(1) != 0)
    fail(op, "groups must divide in_features", got);
  if (!qweight.is_cpu() || !scale.is_cpu()) fail(op, "all operands must be on one device", got);
}

// x's last dimension must be `features`, the weight's in_features or out_features.
inline void check_features(const char* op, const char* name, const Tensor& x, const char* what,
                           int64_t features, const Tensor& qweight) {
  if (x.dim() == 0 || x.size(x.dim() - 1) != features) {
    fail(op, std::string("the last dimension of ") + name + " must be " + what,
         describe(name, x) + ", " + describe("qweight", qweight));
  }
}

inline void check_bias(const char* op, const Tensor& bias, int64_t out_features) {
  if (bias.dim() != 1 || bias.size(0) != out_features) {
    fail(op, "bias must be (out_features)",
         describe("bias", bias) + ", out_features " + std::to_string(out_features));
  }
  if (!bias.is_cpu()) fail(op, "all operands must be on one device", describe("bias", bias));
}

}  // namespace ftrt::bindings
