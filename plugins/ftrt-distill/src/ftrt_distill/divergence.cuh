// Rows of logits as floats, 8 at a time.
#pragma once

#include "elements.cuh"

namespace ftrt {

constexpr int kThreads = 256;
constexpr int kPerLoad = 8;

// The first `count` logits from `from` on and zeros behind them. `aligned`: `from` is a multiple of
// 16 bytes.
template <typename Element>
__device__ inline void load_logits(const Element* from, int count, bool aligned,
                                   float (&values)[kPerLoad]) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    load_floats(from, count, aligned, values);
  } else {
    widen_chunk(load_chunk(from, count, aligned), values, Element{});
  }
}

// Writes the first `count` values, rounded to nearest even.
template <typename Element>
__device__ inline void store_logits(Element* to, int count, bool aligned,
                                    const float (&values)[kPerLoad]) {
  constexpr int kCount = kPerChunk<Element>;
#pragma unroll
  for (int i = 0; i < kPerLoad; i += kCount) {
    float part[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) part[j] = values[i + j];
    store_chunk(to + i, narrow_chunk(part, Element{}), count - i, aligned);
  }
}

}  // namespace ftrt
