// Frozen linear layers with int8 weights and an optional low-rank update, and their
// gradients:
//
//   y  = x Wᵀ + bias + scaling · h bᵀ        h  = drop(x) aᵀ
//   dx = dy W + drop(dS a)                   dS = scaling · dy b
//   da = dSᵀ drop(x)                         db = scaling · dyᵀ h
//
// (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3.) The weight is
// W[n, k] = q[n, k] · scale[n, k / group_size] (Dettmers et al. 2022,
// https://arxiv.org/abs/2208.07339, section 2.1, for one group). Its products are computed
//
//   W8A16: on floats, from dequantized panels that exist one at a time;
//   W8A8:  on int8, both ways, with int32 sums: x as xq · xscale[m], and dy · scale quantized per
//          row. Folding the weight's scale into dy before that is exact, so one int8 weight serves
//          both directions.
//
// Floats are multiplied as float32, or as bfloat16 where the operands are and the CPU can; sums are
// float32; results are rounded once.
#pragma once

#include <cstdint>

#include "ftrt/parallel.h"
#include "ftrt/types.h"

namespace ftrt {

// (rows, features); row m starts at data + m · stride elements.
struct Rows {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t stride = 0;
};

struct Weight {
  // packed int8, (ceil(out / 16), ceil(in / 4), 16, 4): q[p, g, j, d] is W[16 p + j, 4 g + d],
  // zero where there is no such weight
  const int8_t* q = nullptr;
  const float* scale = nullptr;  // (out_features, groups)
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t groups = 1;  // divides in_features; 1 for W8A8
};

struct LowRank {
  const void* a = nullptr;  // (rank, in_features), row-major
  const void* b = nullptr;  // (out_features, rank), row-major
  int64_t rank = 0;         // 0: no update
  float scaling = 0.0f;
  Dropout dropout;
};

// x quantized per row. With W8A8 the columns `outliers` of x are 0 in q and multiply the
// dequantized weight as floats.
struct QuantizedInput {
  const int8_t* q = nullptr;         // (rows, in_features), row-major; nullptr: W8A16
  const float* scale = nullptr;      // (rows)
  const int64_t* outliers = nullptr;  // sorted, within in_features
  int64_t outlier_count = 0;
};

// Floats are of one type, kFloat32 or kBFloat16: x, y, dy, dx, a, b, da and db.
struct LinearForward {
  Element type;
  Rows x;
  QuantizedInput quantized;
  Weight weight;
  const float* bias;  // (out_features) or nullptr
  LowRank update;
  float* h;  // (rows, rank + outlier_count), written: [drop(x) aᵀ | x[:, outliers]]
  void* y;   // (rows, out_features), row-major, written
};

struct LinearBackward {
  Element type;
  Rows dy;
  Rows x;                    // for da without quantized.q; else data may be nullptr
  QuantizedInput quantized;  // W8A8 iff quantized.scale is given; q may then be nullptr without da
  Weight weight;
  LowRank update;
  const float* h;  // as the forward pass wrote it
  void* dx;        // (rows, in_features), row-major, written; nullptr: not wanted
  void* da;        // (rank, in_features), likewise
  void* db;        // (out_features, rank), likewise
};

// Throw std::bad_alloc if scratch memory cannot be had; no other failure is possible.
void linear_forward(const LinearForward& task, const Threads& threads);
void linear_backward(const LinearBackward& task, const Threads& threads);

// q = x / scale, rounded to nearest even, within -127..127, with scale = max |x| / 127 of each row,
// columns `outliers` left out (0 in q); scale is 1 where a row is zero. A row that is not finite
// has a scale that is not. Tokens are multiplied by the rounded 1 / scale, which is much faster,
// weights are divided.
//
//   q: (rows, features) row-major, scale: (rows); both written.
void quantize_tokens(const Rows& x, int64_t features, Element type, const int64_t* outliers,
                     int64_t outlier_count, int8_t* q, float* scale, const Threads& threads);
void quantize_channels(const Rows& weight, int64_t features, Element type, int8_t* q, float* scale,
                       const Threads& threads);

// The most products W8A8 can sum: an int32 holds so many of -128 and -128.
inline constexpr int64_t kMaxInt8Depth = ((int64_t{1} << 31) - 1) / (128 * 128);

}  // namespace ftrt
