// Splits a Gemm into blocks and hands them to the kernel of the chosen instruction set.
#include "gemm_driver.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "ftrt/cpu_features.h"

namespace ftrt::cpu {
namespace {

struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};

// The calling thread's scratch, kept between calls: fresh pages cost more than the packing.
uint8_t* scratch_memory(int64_t bytes) {
  thread_local std::unique_ptr<uint8_t[], Free> memory;
  thread_local int64_t held = 0;
  if (bytes > held) {
    memory.reset();
    held = 0;
    memory.reset(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(bytes))));
    if (!memory) throw std::bad_alloc();
    held = bytes;
  }
  return memory.get();
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t round_up(int64_t a, int64_t unit) { return ceil_div(a, unit) * unit; }

// Blocks of near-equal size, a multiple of `unit`, at most `limit`.
int64_t even_block(int64_t size, int64_t limit, int64_t unit) {
  const int64_t whole_units = std::max<int64_t>(limit / unit * unit, unit);
  const int64_t blocks = std::max<int64_t>(ceil_div(size, whole_units), 1);
  return round_up(ceil_div(size, blocks), unit);
}

struct Schedule {
  const Gemm* gemm;
  const GemmKernel* kernel;
  uint8_t* memory;
  int64_t worker_bytes, row_bytes;
  int64_t left_bytes, correction_bytes, sums_bytes, low_left_bytes, low_right_bytes;
  int64_t block_rows, block_cols;
  int64_t col_blocks, tasks;
  std::atomic<int64_t> next{0};
};

constexpr int64_t kRightBytes = kMaxPanels * (kSliceBytes / 4) * kPanelBytes;

// Blocks of many rows, since each block of rows makes the panels of b anew; columns are cut until
// there are enough blocks, which only repeats the copying of a.
void plan(Schedule& schedule, int64_t threads) {
  const Gemm& gemm = *schedule.gemm;
  const GemmKernel& kernel = *schedule.kernel;
  const int64_t depth_bytes = round_up(ceil_div(gemm.depth, lane_depth(gemm.kind)) * 4, 64);
  const bool is_sliced = depth_bytes > kSliceBytes;
  schedule.row_bytes = std::min(depth_bytes, kSliceBytes) + kRowPad;
  const int64_t max_rows = std::min(kMaxRows, kernel.max_left_bytes / schedule.row_bytes);
  const int64_t max_cols = is_sliced ? kernel.max_sliced_cols : kMaxCols;
  const int64_t tile_cols = kMaxPanels * kPanelCols;
  schedule.block_rows = even_block(gemm.rows, max_rows, kernel.tile_rows);
  schedule.block_cols = even_block(gemm.cols, max_cols, tile_cols);
  const int64_t row_blocks = ceil_div(gemm.rows, schedule.block_rows);
  // several blocks a thread, so that one that is held up is helped by the others
  const int64_t wanted = threads == 1 ? 1 : 6 * threads;
  if (row_blocks * ceil_div(gemm.cols, schedule.block_cols) < wanted) {
    const int64_t share = std::max(gemm.cols / ceil_div(wanted, row_blocks), 2 * tile_cols);
    schedule.block_cols = even_block(gemm.cols, std::min(share, max_cols), tile_cols);
  }
  schedule.col_blocks = ceil_div(gemm.cols, schedule.block_cols);
  // rows too where c is narrow, as h is: a thread without a block is the worse waste
  if (row_blocks * schedule.col_blocks < threads) {
    const int64_t share = ceil_div(gemm.rows, ceil_div(threads, schedule.col_blocks));
    schedule.block_rows = even_block(gemm.rows, share, kernel.tile_rows);
  }
  schedule.tasks = ceil_div(gemm.rows, schedule.block_rows) * schedule.col_blocks;
  const int64_t low_steps =
      round_up(ceil_div(gemm.epilogue.rank, lane_depth(gemm.low_kind)), kLowSteps);
  schedule.left_bytes = schedule.block_rows * schedule.row_bytes;
  schedule.correction_bytes = round_up(schedule.block_rows * 4, 64);
  schedule.sums_bytes = schedule.block_rows * (is_sliced ? schedule.block_cols : tile_cols) * 4;
  schedule.low_left_bytes = round_up(schedule.block_rows * low_steps * 4, 64);
  schedule.low_right_bytes = schedule.block_cols / kPanelCols * low_steps * kPanelBytes;
  schedule.worker_bytes =
      round_up(schedule.left_bytes + schedule.correction_bytes + kRightBytes + schedule.sums_bytes +
                   schedule.low_left_bytes + schedule.low_right_bytes,
               4096);
}

Scratch scratch_of(const Schedule& schedule, int64_t worker) {
  uint8_t* at = schedule.memory + worker * schedule.worker_bytes;
  const auto take = [&at](int64_t bytes) {
    uint8_t* const part = at;
    at += bytes;
    return part;
  };
  Scratch scratch;
  scratch.left = take(schedule.left_bytes);
  scratch.row_bytes = schedule.row_bytes;
  scratch.correction = reinterpret_cast<int32_t*>(take(schedule.correction_bytes));
  scratch.right = take(kRightBytes);
  scratch.sums = take(schedule.sums_bytes);
  scratch.low_left = take(schedule.low_left_bytes);
  scratch.low_right = take(schedule.low_right_bytes);
  return scratch;
}

// Blocks are taken one by one, so a thread whose core is busy elsewhere takes fewer.
void work(int64_t begin, int64_t end, void* context) {
  Schedule& schedule = *static_cast<Schedule*>(context);
  const Gemm& gemm = *schedule.gemm;
  for (int64_t worker = begin; worker < end; ++worker) {
    const Scratch scratch = scratch_of(schedule, worker);
    for (int64_t task = schedule.next++; task < schedule.tasks; task = schedule.next++) {
      Block block;
      block.row = task / schedule.col_blocks * schedule.block_rows;
      block.col = task % schedule.col_blocks * schedule.block_cols;
      block.rows = std::min(schedule.block_rows, gemm.rows - block.row);
      block.cols = std::min(schedule.block_cols, gemm.cols - block.col);
      schedule.kernel->compute(gemm, block, scratch);
    }
  }
}

const KernelSet& kernels_of(Isa isa) {
  switch (isa) {
#ifdef FTRT_BUILD_AMX
    case Isa::kAmx:
      return kAmxKernels;
#endif
#ifdef FTRT_BUILD_AVX512_BF16
    case Isa::kAvx512Bf16:
      return kAvx512Bf16Kernels;
#endif
#ifdef FTRT_BUILD_AVX512_VNNI
    case Isa::kAvx512Vnni:
      return kAvx512VnniKernels;
#endif
#ifdef FTRT_BUILD_AVX512
    case Isa::kAvx512:
      return kAvx512Kernels;
#endif
#ifdef FTRT_BUILD_AVX2
    case Isa::kAvx2:
      return kAvx2Kernels;
#endif
    default:
      return kPortableKernels;
  }
}

const GemmKernel& kernel_of(const Gemm& gemm) {
  const KernelSet& set = chosen_kernels();
  if (gemm.kind == Kind::kF32) return *set.f32;
  return gemm.kind == Kind::kBf16x2 ? *set.bf16 : *set.s8;
}

}  // namespace

const KernelSet& chosen_kernels() { return kernels_of(chosen_isa()); }

Kind int8_kind() { return chosen_kernels().s8_kind; }

Kind float_kind(Element type) {
  const bool is_bf16 = type == Element::kBFloat16 && chosen_kernels().bf16 != nullptr;
  return is_bf16 ? Kind::kBf16x2 : Kind::kF32;
}

void run_gemm(const Gemm& gemm, const Threads& threads) {
  if (gemm.rows == 0 || gemm.cols == 0) return;
  Schedule schedule;
  schedule.gemm = &gemm;
  schedule.kernel = &kernel_of(gemm);
  plan(schedule, threads.count);
  const int64_t workers = std::min(threads.count, schedule.tasks);
  schedule.memory = scratch_memory(workers * schedule.worker_bytes);
  if (workers == 1) {
    work(0, 1, &schedule);
  } else {
    threads.parallel_for(0, workers, 1, &work, &schedule);
  }
}

void run_quantize(const QuantizeRows& task, int64_t rows, const Threads& threads) {
  struct Call {
    const QuantizeRows* task;
    QuantizeRowsFunction function;
  } call = {&task, chosen_kernels().quantize_rows};
  const auto work = [](int64_t begin, int64_t end, void* context) {
    const Call& call = *static_cast<const Call*>(context);
    call.function(*call.task, begin, end);
  };
  // a task of less than this many values is not worth waking a thread for
  constexpr int64_t kGrainValues = 32768;
  const int64_t grain = std::max<int64_t>(1, kGrainValues / std::max<int64_t>(1, task.features));
  if (rows <= grain || threads.count == 1) {
    work(0, rows, &call);
  } else {
    threads.parallel_for(0, rows, grain, work, &call);
  }
}

}  // namespace ftrt::cpu
