// What can go wrong between here and a launched kernel; each message reads
// `<where>: <what must hold>; got <values>` and, where it helps, the fix.
#pragma once

#include <stdexcept>
#include <string>

namespace ftrt::cuda {

enum class Fault {
  kMissing,  // no driver, no device or no compiler here
  kInvalid,  // a source that does not compile, or a launch the kernel cannot have
  kFailed,   // the driver or the compiler failed at what it should have done
};

class Error : public std::runtime_error {
 public:
  Error(Fault kind, const std::string& text) : std::runtime_error(text), fault(kind) {}

  const Fault fault;
};

}  // namespace ftrt::cuda
