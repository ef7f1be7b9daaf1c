// What linear.cpp and linear_backward.cpp make their products of.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "ftrt/linear.h"
#include "gemm_driver.h"

namespace ftrt {

// y of a task whose h is there.
//   factor: (rank + outlier_count, out_features), what h is multiplied by
void rows_forward(const LinearForward& task, const float* factor, const Threads& threads);

// The same for few rows of W8A16 (linear_few_rows.cpp), and whether that suits the task.
bool suits_few_rows(const LinearForward& task);
void few_rows_forward(const LinearForward& task, const float* factor, const Threads& threads);

namespace {

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

inline float read_float(const void* data, Element type, int64_t index) {
  if (type == Element::kFloat32) return static_cast<const float*>(data)[index];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void write_float(void* data, Element type, int64_t index, float value) {
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

// W as the right operand of x Wᵀ or of dy W.
inline Right weight_operand(const Weight& weight, bool is_forward) {
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

inline Left rows_operand(const Rows& rows, Element type) {
  Left left;
  left.data = rows.data;
  left.type = type;
  left.stride = rows.stride;
  return left;
}

inline Gemm product(int64_t rows, int64_t depth, int64_t cols, Element type) {
  Gemm gemm;
  gemm.rows = rows;
  gemm.depth = depth;
  gemm.cols = cols;
  gemm.kind = cpu::float_kind(type);
  gemm.low_kind = gemm.kind;
  return gemm;
}

inline void write_to(Gemm& gemm, void* c, Element type, int64_t stride) {
  gemm.epilogue.c = c;
  gemm.epilogue.type = type;
  gemm.epilogue.stride = stride;
}

}  // namespace
}  // namespace ftrt
