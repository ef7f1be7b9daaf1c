// Runs the CPU kernels of one instruction-set level against float64.
//
//   kernels levels           the usable levels, one a line; "amx" is the emulated one
//   kernels LEVEL            everything, on that level
//   kernels LEVEL OPERAND    one product whose left, right or c is a byte short: AddressSanitizer
//                            must stop it
//
// Every case runs in a thread of its own, so that its scratch memory is fresh. Under
// AddressSanitizer it is filled with 0xff (NaN as any float) if ASAN_OPTIONS says so.
#include <stdexcept>
#include <thread>

#include "amx_cases.h"
#include "ftrt/cpu_features.h"
#include "gemm_cases.h"
#include "gemm_driver.h"
#include "linear_cases.h"

namespace ftrt::test {
namespace {

using cpu::Kind;

template <class Body>
void in_thread(const Body& body) {
  std::thread(body).join();
}

void parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelBody body, void* context) {
  std::vector<std::thread> threads;
  const int64_t share = std::max(grain, (end - begin + 2) / 3);
  for (int64_t from = begin; from < end; from += share) {
    threads.emplace_back(body, from, std::min(end, from + share), context);
  }
  for (std::thread& thread : threads) thread.join();
}

struct KindOfCase {
  Kind kind;
  Operands operands;
};

std::vector<KindOfCase> kinds_of_level() {
  std::vector<KindOfCase> kinds = {{cpu::int8_kind(), Operands::kInt8},
                                   {Kind::kF32, Operands::kFloats}};
  if (cpu::chosen_kernels().bf16 != nullptr) kinds.push_back({Kind::kBf16x2, Operands::kFloats});
  return kinds;
}

void check_product(Random& random, const KindOfCase& kind, Shape shape, const Threads& threads) {
  const bool has_bf16 = cpu::chosen_kernels().bf16 != nullptr;
  const GemmCase item = random_case(random, kind.kind, has_bf16, kind.operands, shape);
  in_thread([&] { cpu::run_gemm(item.gemm, threads); });
  expect_right(item, isa_name(chosen_isa()));
}

void check_products() {
  Random random(1);
  const int64_t depths[] = {1,  2,  3,  4,  5,  6,   7,   8,   15,  16,   17,
                            31, 63, 64, 65, 66, 67, 130, 513, 1026, 2049, 2055};
  for (const KindOfCase& kind : kinds_of_level()) {
    for (const int64_t rows : {0, 1, 2, 13, 14, 15, 16, 31, 33}) {
      for (const int64_t cols : {0, 1, 15, 16, 17, 32, 33, 49}) {
        for (int repeat = 0; repeat < 3; ++repeat) {
          check_product(random, kind, {rows, random.one_of(depths), cols}, {});
        }
      }
    }
    check_product(random, kind, {3, 0, 20}, {});
    check_product(random, kind, {470, 33, 35}, {});
    check_product(random, kind, {5, 2500, 300}, {});
    check_product(random, kind, {130, 530, 70}, {3, &parallel_for});
    check_product(random, kind, {33, 70, 700}, {3, &parallel_for});
  }
}

int run_level() {
  const bool is_amx = chosen_isa() == Isa::kAmx;
  if (is_amx) in_thread(&check_tile_instructions);
  if (is_amx) in_thread(&check_tile_use);
  check_products();
  for (uint64_t seed = 0; seed < 150; ++seed) {
    const Threads threads = seed % 4 == 0 ? Threads{3, &parallel_for} : Threads{};
    in_thread([&] { check_linear(seed, isa_name(chosen_isa()), threads); });
  }
  std::printf("%ld checks, %ld failures\n", static_cast<long>(counts().checks),
              static_cast<long>(counts().failures));
  return counts().failures == 0 ? 0 : 1;
}

int run_short(const std::string& operand) {
  Random random(2);
  GemmCase item = random_case(random, cpu::int8_kind(), false, Operands::kInt8, {17, 70, 21});
  std::vector<uint8_t>& buffer = operand == "left" ? item.left
                                 : operand == "right" ? item.right
                                                      : item.c;
  const std::vector<uint8_t> shorter(buffer.begin(), buffer.end() - 1);
  if (operand == "left") item.gemm.left.data = shorter.data();
  if (operand == "right") item.gemm.right.data = shorter.data();
  if (operand == "c") item.gemm.epilogue.c = const_cast<uint8_t*>(shorter.data());
  cpu::run_gemm(item.gemm, {});
  return 0;
}

int run(int count, char** arguments) {
  if (count < 2) throw std::invalid_argument("kernels: needs a level");
  const std::string level = arguments[1];
  if (level == "levels") {
    for (const Isa isa : usable_isas()) std::printf("%s\n", isa_name(isa));
    return 0;
  }
  set_isa(level);
  return count > 2 ? run_short(arguments[2]) : run_level();
}

}  // namespace
}  // namespace ftrt::test

int main(int count, char** arguments) { return ftrt::test::run(count, arguments); }
