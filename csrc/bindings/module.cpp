// ftrt._C: what Python may ask the compiled code about itself. Ops are not called through here but
// through the dispatcher (linear.cpp); importing the module registers them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "ftrt/ceiling.h"
#include "ftrt/cpu_features.h"
#include "kernels.h"

#ifndef FTRT_BUILD_TORCH
#error "setup.py defines FTRT_BUILD_TORCH, the version of torch whose headers are used"
#endif

namespace ftrt::bindings {
namespace {

std::vector<std::string> names(const std::vector<Isa>& isas) {
  std::vector<std::string> result;
  for (const Isa isa : isas) result.emplace_back(isa_name(isa));
  return result;
}

std::map<std::string, bool> features() {
  const CpuFeatures& cpu = cpu_features();
  return {{"avx2", cpu.avx2},
          {"avx512", cpu.avx512},
          {"avx512_vnni", cpu.avx512_vnni},
          {"avx512_bf16", cpu.avx512_bf16},
          {"amx_int8", cpu.amx_int8},
          {"amx_bf16", cpu.amx_bf16}};
}

std::map<std::string, std::string> build_facts() {
  return {
      {"torch", FTRT_BUILD_TORCH},
#if defined(__clang__)
      {"compiler", "clang " __clang_version__},
#else
      {"compiler", "gcc " __VERSION__},
#endif
  };
}

}  // namespace
}  // namespace ftrt::bindings

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of ftrt: facts and switches. The ops themselves are torch.ops.ftrt.*";
  m.attr("ops") = pybind11::make_tuple(
      "quantize_per_channel", "quantize_per_token", "int8_linear", "int8_linear_dx",
      "int8_lora_linear", "int8_lora_linear_backward");
  m.def("cpu_features", &ftrt::bindings::features, "What this CPU can do, by feature name.");
  m.def(
      "built_isas", [] { return ftrt::bindings::names(ftrt::built_isas()); },
      "Instruction-set levels this build has code for, worst first.");
  m.def(
      "usable_isas", [] { return ftrt::bindings::names(ftrt::usable_isas()); },
      "Built levels that this CPU can run, worst first.");
  m.def(
      "chosen_isa", [] { return std::string(ftrt::isa_name(ftrt::chosen_isa())); },
      "The level the CPU kernels run at.");
  m.def("set_isa", &ftrt::set_isa, pybind11::arg("name"),
        "Run the CPU kernels at this level; ValueError unless it is usable here.");
  m.def("measure_ceiling", &ftrt::measure_ceiling, pybind11::arg("kind"), pybind11::arg("threads"),
        pybind11::arg("seconds"), pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Operations a second (int8, bf16, fp32) of the chosen level's instructions in registers,"
        " or bytes a second (read). ValueError for bf16 where the level has no such product.");
  m.def("build_facts", &ftrt::bindings::build_facts,
        "The compiler, and the torch whose headers were used.");
  ftrt::bindings::add_kernels(m);
}
