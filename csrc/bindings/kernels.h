// Binds the CUDA runtime, csrc/runtime.
#pragma once

#include <pybind11/pybind11.h>

namespace ftrt::bindings {

// Adds the submodule `kernels`.
void add_kernels(pybind11::module_& parent);

}  // namespace ftrt::bindings
