// Linear layers as products of gemm.h.
#include "ftrt/linear.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "gemm_driver.h"

namespace ftrt {
namespace {

using cpu::Epilogue;
using cpu::Gemm;
using cpu::Left;
using cpu::Right;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Uninitialised memory for `count` elements.
template <class T>
std::unique_ptr<T[], Free> buffer(int64_t count) {
  const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64 + 64;
  void* memory = std::aligned_alloc(64, static_cast<size_t>(bytes));
  if (memory == nullptr) throw std::bad_alloc();
  return std::unique_ptr<T[], Free>(static_cast<T*>(memory));
}

float read_float(const void* data, Element type, int64_t index) {
  if (type == Element::kFloat32) return static_cast<const float*>(data)[index];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

void write_float(void* data, Element type, int64_t index, float value) {
  if (type == Element::kFloat32) {
    static_cast<float*>(data)[index] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  static_cast<uint16_t*>(data)[index] =
      static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded);
}

float dequantized(const Weight& weight, int64_t n, int64_t k) {
  const int64_t steps = (weight.in_features + 3) / 4;
  const int64_t at = (n / 16 * steps + k / 4) * 64 + n % 16 * 4 + k % 4;
  const int64_t group = k / (weight.in_features / weight.groups);
  return static_cast<float>(weight.q[at]) * weight.scale[n * weight.groups + group];
}

// W as the right operand of x Wᵀ or of dy W.
Right weight_operand(const Weight& weight, bool is_forward) {
  Right right;
  right.layout = is_forward ? Right::Layout::kInt8Forward : Right::Layout::kInt8Backward;
  right.data = weight.q;
  right.type = Element::kInt8;
  right.panel_steps = (weight.in_features + 3) / 4;
  if (weight.groups > 1) {
    right.scale = weight.scale;
    right.groups = weight.groups;
    right.group_size = weight.in_features / weight.groups;
  }
  return right;
}

Left rows_operand(const Rows& rows, Element type) {
  Left left;
  left.data = rows.data;
  left.type = type;
  left.stride = rows.stride;
  return left;
}

Gemm product(int64_t rows, int64_t depth, int64_t cols, Element type) {
  Gemm gemm;
  gemm.rows = rows;
  gemm.depth = depth;
  gemm.cols = cols;
  gemm.kind = cpu::float_kind(type);
  gemm.low_kind = gemm.kind;
  return gemm;
}

void write_to(Gemm& gemm, void* c, Element type, int64_t stride) {
  gemm.epilogue.c = c;
  gemm.epilogue.type = type;
  gemm.epilogue.stride = stride;
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
      factor[(rank + o) * out + n] = dequantized(task.weight, n, task.quantized.outliers[o]);
    }
  }
  return factor;
}

// dS = scaling · dy b, (rows, rank)
std::unique_ptr<float[], Free> hidden_gradient(const LinearBackward& task,
                                               const Threads& threads) {
  const int64_t rank = task.update.rank;
  auto ds = buffer<float>(task.dy.rows * rank);
  const std::vector<float> scaling(static_cast<size_t>(rank), task.update.scaling);
  Gemm gemm = product(task.dy.rows, task.weight.out_features, rank, task.type);
  gemm.left = rows_operand(task.dy, task.type);
  gemm.right.data = task.update.b;
  gemm.right.type = task.type;
  gemm.right.stride = rank;
  gemm.epilogue.col_scale = scaling.data();
  write_to(gemm, ds.get(), Element::kFloat32, rank);
  cpu::run_gemm(gemm, threads);
  return ds;
}

void input_gradient(const LinearBackward& task, const float* ds, const Threads& threads) {
  const Weight& weight = task.weight;
  const int64_t rows = task.dy.rows;
  Gemm gemm = product(rows, weight.out_features, weight.in_features, task.type);
  gemm.left = rows_operand(task.dy, task.type);
  gemm.right = weight_operand(weight, false);
  std::unique_ptr<int8_t[], Free> dzq;
  std::unique_ptr<float[], Free> dz_scale;
  if (task.quantized.scale != nullptr) {
    dzq = buffer<int8_t>(rows * weight.out_features);
    dz_scale = buffer<float>(rows);
    cpu::QuantizeRows quantize = {};
    quantize.x = task.dy.data;
    quantize.type = task.type;
    quantize.stride = task.dy.stride;
    quantize.features = weight.out_features;
    quantize.col_scale = weight.scale;
    quantize.q = dzq.get();
    quantize.scale = dz_scale.get();
    cpu::run_quantize(quantize, rows, threads);
    gemm.left = rows_operand({dzq.get(), rows, weight.out_features}, Element::kInt8);
    gemm.kind = cpu::int8_kind();
    gemm.epilogue.row_scale = dz_scale.get();
  } else if (weight.groups == 1) {
    gemm.left.depth_scale = weight.scale;
  }
  std::unique_ptr<float[], Free> a;
  const int64_t rank = task.update.rank;
  if (rank > 0) {
    a = buffer<float>(rank * weight.in_features);
    for (int64_t i = 0; i < rank * weight.in_features; ++i) {
      a[i] = read_float(task.update.a, task.type, i);
    }
    gemm.epilogue.low_left = ds;
    gemm.epilogue.low_right = a.get();
    gemm.epilogue.rank = rank;
    gemm.epilogue.dropout = task.update.dropout;
  }
  write_to(gemm, task.dx, task.type, weight.in_features);
  cpu::run_gemm(gemm, threads);
}

// da = dSᵀ drop(x), x from its int8 form where that was kept.
void gradient_of_a(const LinearBackward& task, const float* ds, const Threads& threads) {
  const int64_t rank = task.update.rank;
  const int64_t in = task.weight.in_features;
  const int64_t rows = task.dy.rows;
  Gemm gemm = product(rank, rows, in, task.type);
  gemm.left.data = ds;
  gemm.left.stride = rank;
  gemm.left.transposed = true;
  gemm.right.stride = in;
  if (task.quantized.q != nullptr) {
    gemm.left.depth_scale = task.quantized.scale;
    gemm.right.data = task.quantized.q;
    gemm.right.type = Element::kInt8;
  } else {
    gemm.right.data = task.x.data;
    gemm.right.type = task.type;
    gemm.right.stride = task.x.stride;
  }
  gemm.right.dropout = task.update.dropout;
  write_to(gemm, task.da, task.type, in);
  cpu::run_gemm(gemm, threads);
  if (task.quantized.q == nullptr) return;
  // the outlier columns are 0 in the int8 x; h has their values
  const Dropout& dropout = task.update.dropout;
  const int64_t columns = rank + task.quantized.outlier_count;
  for (int64_t o = 0; o < task.quantized.outlier_count; ++o) {
    const int64_t col = task.quantized.outliers[o];
    std::vector<float> sums(static_cast<size_t>(rank), 0.0f);
    for (int64_t m = 0; m < rows; ++m) {
      float value = task.h[m * columns + rank + o];
      if (dropout.threshold != 0) {
        const uint32_t step = static_cast<uint32_t>(col) * kDropoutStep;
        const bool is_kept =
            dropout_mix(dropout_row_key(dropout, m) ^ step) >= dropout.threshold;
        value = is_kept ? value * dropout.factor : 0.0f;
      }
      for (int64_t r = 0; r < rank; ++r) sums[static_cast<size_t>(r)] += ds[m * rank + r] * value;
    }
    for (int64_t r = 0; r < rank; ++r) {
      write_float(task.da, task.type, r * in + col, sums[static_cast<size_t>(r)]);
    }
  }
}

// db = scaling · dyᵀ h, computed as (hᵀ dy)ᵀ
void gradient_of_b(const LinearBackward& task, const Threads& threads) {
  const int64_t rank = task.update.rank;
  const int64_t out = task.weight.out_features;
  Gemm gemm = product(rank, task.dy.rows, out, task.type);
  gemm.left.data = task.h;
  gemm.left.stride = rank + task.quantized.outlier_count;
  gemm.left.transposed = true;
  gemm.right.data = task.dy.data;
  gemm.right.type = task.type;
  gemm.right.stride = task.dy.stride;
  auto transposed = buffer<float>(rank * out);
  write_to(gemm, transposed.get(), Element::kFloat32, out);
  cpu::run_gemm(gemm, threads);
  for (int64_t n = 0; n < out; ++n) {
    for (int64_t r = 0; r < rank; ++r) {
      write_float(task.db, task.type, n * rank + r, task.update.scaling * transposed[r * out + n]);
    }
  }
}

}  // namespace

void linear_forward(const LinearForward& task, const Threads& threads) {
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
  std::unique_ptr<float[], Free> factor;
  const int64_t columns = task.update.rank + task.quantized.outlier_count;
  if (columns > 0) {
    hidden(task, threads);
    factor = forward_factor(task);
    gemm.epilogue.low_left = task.h;
    gemm.epilogue.low_right = factor.get();
    gemm.epilogue.rank = columns;
  }
  write_to(gemm, task.y, task.type, weight.out_features);
  cpu::run_gemm(gemm, threads);
}

void linear_backward(const LinearBackward& task, const Threads& threads) {
  std::unique_ptr<float[], Free> ds;
  const bool has_update = task.update.rank > 0;
  if (has_update && (task.dx != nullptr || task.da != nullptr)) {
    ds = hidden_gradient(task, threads);
  }
  if (task.dx != nullptr) input_gradient(task, ds.get(), threads);
  if (has_update && task.da != nullptr) gradient_of_a(task, ds.get(), threads);
  if (has_update && task.db != nullptr) gradient_of_b(task, threads);
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
