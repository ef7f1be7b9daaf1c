// Random linear layers through include/ftrt/linear.h, forward and backward, against float64.
#pragma once

#include <cstdint>
#include <string>

#include "ftrt/parallel.h"

namespace ftrt::test {

void check_linear(uint64_t seed, const std::string& where, const Threads& threads);

}  // namespace ftrt::test
