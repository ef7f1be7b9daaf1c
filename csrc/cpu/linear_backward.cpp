// The gradients of linear layers as products of gemm.h.
#include <memory>
#include <vector>

#include "ftrt/linear.h"
#include "linear_parts.h"

namespace ftrt {
namespace {

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

}  // namespace ftrt
