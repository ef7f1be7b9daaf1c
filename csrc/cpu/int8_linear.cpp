// Splits an int8 linear layer into blocks and hands them to the kernel of the chosen instruction
// set.
#include "ftrt/int8_linear.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "ftrt/cpu_features.h"
#include "int8_gemm.h"

namespace ftrt {
namespace {

const cpu::Int8GemmKernel& kernel_for(Isa isa) {
  switch (isa) {
#ifdef FTRT_BUILD_AVX512
    case Isa::kAvx512:
      return cpu::kInt8GemmAvx512;
#endif
#ifdef FTRT_BUILD_AVX2
    case Isa::kAvx2:
      return cpu::kInt8GemmAvx2;
#endif
    default:
      return cpu::kInt8GemmPortable;
  }
}

struct Free {
  void operator()(float* p) const { std::free(p); }
};

// The calling thread's scratch for `count` workers, kept between calls: fresh pages cost more than
// the packing.
float* scratch_for(int64_t count) {
  thread_local std::unique_ptr<float[], Free> memory;
  thread_local int64_t held = 0;
  if (count > held) {
    memory.reset();
    held = 0;
    const size_t bytes = static_cast<size_t>(count * cpu::kScratchFloats) * sizeof(float);
    memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    held = count;
  }
  return memory.get();
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of near-equal size, a multiple of `unit`, at most `limit`.
int64_t even_block(int64_t size, int64_t limit, int64_t unit) {
  const int64_t whole_units = std::max<int64_t>(limit / unit * unit, unit);
  const int64_t blocks = std::max<int64_t>(ceil_div(size, whole_units), 1);
  return ceil_div(ceil_div(size, blocks), unit) * unit;
}

struct Schedule {
  const cpu::Int8Gemm* gemm;
  const cpu::Int8GemmKernel* kernel;
  float* scratch;
  int64_t block_rows, block_cols;
  int64_t col_blocks, tasks;
  std::atomic<int64_t> next{0};
};

// Blocks small enough that every thread gets some. Columns are cut first: that repeats only the
// copy of a, while cutting rows repeats the int8 conversion of b.
void plan(Schedule& schedule, int64_t threads) {
  const cpu::Int8Gemm& gemm = *schedule.gemm;
  const cpu::Int8GemmKernel& kernel = *schedule.kernel;
  schedule.block_rows = even_block(gemm.rows, cpu::kMaxRows, kernel.tile_rows);
  schedule.block_cols = even_block(gemm.cols, cpu::kMaxCols, kernel.tile_cols);
  const int64_t wanted = threads == 1 ? 1 : 2 * threads;
  const int64_t row_blocks = ceil_div(gemm.rows, schedule.block_rows);
  if (row_blocks * ceil_div(gemm.cols, schedule.block_cols) < wanted) {
    const int64_t limit = std::max(gemm.cols / ceil_div(wanted, row_blocks), kernel.tile_cols);
    schedule.block_cols = even_block(gemm.cols, std::min(limit, cpu::kMaxCols), kernel.tile_cols);
  }
  schedule.col_blocks = ceil_div(gemm.cols, schedule.block_cols);
  schedule.tasks = row_blocks * schedule.col_blocks;
}

// Blocks are taken one by one, so a thread whose core is busy elsewhere takes fewer.
void work(int64_t worker, int64_t, void* context) {
  Schedule& schedule = *static_cast<Schedule*>(context);
  const cpu::Int8Gemm& gemm = *schedule.gemm;
  float* scratch = schedule.scratch + worker * cpu::kScratchFloats;
  for (int64_t task = schedule.next++; task < schedule.tasks; task = schedule.next++) {
    cpu::Block block;
    block.row = task / schedule.col_blocks * schedule.block_rows;
    block.col = task % schedule.col_blocks * schedule.block_cols;
    block.rows = std::min(schedule.block_rows, gemm.rows - block.row);
    block.cols = std::min(schedule.block_cols, gemm.cols - block.col);
    schedule.kernel->compute(gemm, block, scratch);
  }
}

void run(const cpu::Int8Gemm& gemm, const Threads& threads) {
  if (gemm.rows == 0 || gemm.cols == 0) return;
  Schedule schedule;
  schedule.gemm = &gemm;
  schedule.kernel = &kernel_for(chosen_isa());
  plan(schedule, threads.count);
  const int64_t workers = std::min(threads.count, schedule.tasks);
  schedule.scratch = scratch_for(workers);
  if (workers == 1) {
    work(0, 1, &schedule);
  } else {
    threads.parallel_for(0, workers, 1, &work, &schedule);
  }
}

}  // namespace

void int8_linear(const void* x, int64_t rows, int64_t x_stride, DType dtype,
                 const Int8Weight& weight, const float* bias, void* y, const Threads& threads) {
  run({x, y, bias, weight, dtype, cpu::Direction::kForward, rows, weight.in_features,
       weight.out_features, x_stride},
      threads);
}

void int8_linear_dx(const void* dy, int64_t rows, int64_t dy_stride, DType dtype,
                    const Int8Weight& weight, void* dx, const Threads& threads) {
  run({dy, dx, nullptr, weight, dtype, cpu::Direction::kBackward, rows, weight.out_features,
       weight.in_features, dy_stride},
      threads);
}

}  // namespace ftrt
