// Operand checks of the CPU ops. The texts are those of ftrt/ops/checks.py: which one a user meets
// depends only on where the op runs.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "ftrt/linear.h"

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

inline void check_per_channel(const char* op, const Tensor& scale) {
  if (scale.size(1) != 1) {
    fail(op, "w8a8 needs one scale per output feature", describe("scale", scale));
  }
}

// What a product of int8 by int8 sums over, in_features or out_features (`what`).
inline void check_int8_depth(const char* op, const char* what, int64_t depth) {
  if (depth > kMaxInt8Depth) {
    fail(op,
         std::string("w8a8 sums in int32, of at most ") + std::to_string(kMaxInt8Depth) +
             " products; use compute w8a16",
         std::string(what) + " " + std::to_string(depth));
  }
}

inline void check_on_cpu(const char* op, const char* name, const Tensor& tensor) {
  if (!tensor.is_cpu()) fail(op, "all operands must be on one device", describe(name, tensor));
}

inline void check_weight(const char* op, const Tensor& qweight, const Tensor& scale,
                         int64_t in_features) {
  const std::string got = describe("qweight", qweight) + ", " + describe("scale", scale);
  if (qweight.dim() != 4 || qweight.size(2) != 16 || qweight.size(3) != 4 ||
      qweight.scalar_type() != ScalarType::Char) {
    fail(op, "qweight must be int8, packed as (out_features / 16, in_features / 4, 16, 4)", got);
  }
  if (!qweight.is_contiguous()) fail(op, "qweight must be contiguous", got);
  if (scale.dim() != 2 || scale.scalar_type() != ScalarType::Float || !scale.is_contiguous()) {
    fail(op, "scale must be (out_features, groups) float32, contiguous", got);
  }
  if ((scale.size(0) + 15) / 16 != qweight.size(0)) {
    fail(op, "scale and qweight must have the same out_features", got);
  }
  if (in_features == 0) fail(op, "in_features must be at least 1", got);
  if ((in_features + 3) / 4 != qweight.size(1)) {
    fail(op, "qweight must have in_features input features",
         "in_features " + std::to_string(in_features) + ", " + describe("qweight", qweight));
  }
  if (scale.size(1) == 0 || in_features % scale.size(1) != 0) {
    fail(op, "groups must divide in_features",
         "in_features " + std::to_string(in_features) + ", " + got);
  }
  check_on_cpu(op, "qweight", qweight);
  check_on_cpu(op, "scale", scale);
}

// The last dimension of x must be `features`, the weight's in_features or out_features (`what`).
inline void check_features(const char* op, const char* name, const Tensor& x, const char* what,
                           int64_t features, const Tensor& weight, const char* weight_name) {
  if (x.dim() == 0 || x.size(x.dim() - 1) != features) {
    fail(op, std::string("the last dimension of ") + name + " must be " + what,
         describe(name, x) + ", " + describe(weight_name, weight));
  }
}

inline void check_bias(const char* op, const Tensor& bias, int64_t out_features) {
  if (bias.dim() != 1 || bias.size(0) != out_features) {
    fail(op, "bias must be (out_features)",
         describe("bias", bias) + ", out_features " + std::to_string(out_features));
  }
  check_on_cpu(op, "bias", bias);
}

inline void check_outliers(const char* op, const std::optional<Tensor>& outliers,
                           int64_t in_features) {
  if (!outliers.has_value()) return;
  if (outliers->dim() != 1 || outliers->scalar_type() != ScalarType::Long) {
    fail(op, "outliers must be (columns) int64", describe("outliers", *outliers));
  }
  check_on_cpu(op, "outliers", *outliers);
  const int64_t* columns = static_cast<const int64_t*>(outliers->const_data_ptr());
  const int64_t step = outliers->stride(0);
  int64_t previous = -1;
  for (int64_t i = 0; i < outliers->size(0); ++i) {
    const int64_t column = columns[i * step];
    if (column <= previous || column >= in_features) {
      fail(op, "outliers must be sorted, without repeats and below in_features",
           std::to_string(column) + " after " + std::to_string(previous) + ", in_features " +
               std::to_string(in_features));
    }
    previous = column;
  }
}

// A forward pass takes both or neither; a backward pass may do without xq.
inline void check_given_together(const char* op, const std::optional<Tensor>& xq,
                                 const std::optional<Tensor>& xscale) {
  if (xq.has_value() == xscale.has_value()) return;
  const auto text = [](const char* name, const std::optional<Tensor>& tensor) {
    return tensor.has_value() ? describe(name, *tensor) : std::string(name) + " None";
  };
  fail(op, "xq and xscale must be given together", text("xq", xq) + ", " + text("xscale", xscale));
}

inline void check_quantized(const char* op, const std::optional<Tensor>& xq,
                            const std::optional<Tensor>& xscale, const Tensor& scale, int64_t rows,
                            int64_t in_features) {
  if (!xscale.has_value()) {
    if (xq.has_value()) {
      fail(op, "xq and xscale must be given together", describe("xq", *xq) + ", xscale None");
    }
    return;
  }
  check_per_channel(op, scale);
  check_int8_depth(op, "in_features", in_features);
  std::string got = describe("xscale", *xscale);
  const std::string given = ", rows " + std::to_string(rows);
  if (xq.has_value()) {
    got = describe("xq", *xq) + ", " + got;
    if (xq->dim() != 2 || xq->size(0) != rows || xq->size(1) != in_features ||
        xq->scalar_type() != ScalarType::Char || !xq->is_contiguous()) {
      fail(op, "xq must be (rows, in_features) int8, contiguous, of the same x",
           got + given + ", in_features " + std::to_string(in_features));
    }
    check_on_cpu(op, "xq", *xq);
  }
  if (xscale->dim() != 1 || xscale->size(0) != rows ||
      xscale->scalar_type() != ScalarType::Float || !xscale->is_contiguous()) {
    fail(op, "xscale must be (rows) float32, of the same x", got + given);
  }
  check_on_cpu(op, "xscale", *xscale);
}

inline void check_factors(const char* op, const Tensor& a, const Tensor& b, ScalarType type,
                          int64_t in_features, int64_t out_features) {
  constexpr int64_t kMaxRank = 256;
  const std::string got = describe("a", a) + ", " + describe("b", b);
  const char* rule = "a must be (rank, in_features) and b (out_features, rank)";
  if (a.dim() != 2 || b.dim() != 2 || a.size(0) != b.size(1)) fail(op, rule, got);
  if (a.size(1) != in_features || b.size(0) != out_features) {
    fail(op, rule,
         got + ", in_features " + std::to_string(in_features) + ", out_features " +
             std::to_string(out_features));
  }
  if (a.size(0) < 1 || a.size(0) > kMaxRank) {
    fail(op, "rank must be 1 to " + std::to_string(kMaxRank), got);
  }
  for (const Tensor* factor : {&a, &b}) {
    if (factor->scalar_type() != type && factor->scalar_type() != ScalarType::Float) {
      fail(op,
           std::string("a and b must have the dtype of x, ") + dtype_name(type) + ", or float32",
           got);
    }
  }
  check_on_cpu(op, "a", a);
  check_on_cpu(op, "b", b);
}

inline void check_dropout(const char* op, double dropout, const std::optional<Tensor>& seed) {
  if (!(dropout >= 0 && dropout < 1)) {
    std::ostringstream text;
    text << dropout;
    fail(op, "dropout must be at least 0 and below 1", text.str());
  }
  if (dropout == 0) return;
  if (!seed.has_value() || seed->dim() != 0 || seed->scalar_type() != ScalarType::Long) {
    fail(op, "seed must be () int64 where dropout is above 0",
         seed.has_value() ? describe("seed", *seed) : std::string("None"));
  }
  check_on_cpu(op, "seed", *seed);
}

inline void check_hidden(const char* op, const Tensor& h, int64_t rows, int64_t columns) {
  if (h.dim() != 2 || h.size(0) != rows || h.size(1) != columns ||
      h.scalar_type() != ScalarType::Float) {
    fail(op, "h must be (rows, rank + outliers) float32",
         describe("h", h) + ", rows " + std::to_string(rows) + ", columns " +
             std::to_string(columns));
  }
  check_on_cpu(op, "h", h);
}

inline void check_saved_input(const char* op, const std::optional<Tensor>& x, const Tensor& grad,
                              int64_t rows, int64_t in_features) {
  if (!x.has_value()) {
    fail(op, "x, or xq and xscale, must be given for the gradient of a", "None");
  }
  const bool fits = x->dim() > 0 && x->size(x->dim() - 1) == in_features &&
                    x->scalar_type() == grad.scalar_type() && x->numel() == rows * in_features;
  if (!fits) {
    fail(op, "x must have the rows and the dtype of grad",
         describe("x", *x) + ", " + describe("grad", grad) + ", in_features " +
             std::to_string(in_features));
  }
  check_on_cpu(op, "x", *x);
}

}  // namespace ftrt::bindings
