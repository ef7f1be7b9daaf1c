// libcuda's functions, found once, and how its failures become messages.
#pragma once

#include <string>

#include "cuda_api.h"

namespace ftrt::cuda {

// The driver, initialised. Throws Error(kMissing), again on each call, where it cannot be.
const api::Driver& driver();

// "CUDA_ERROR_INVALID_VALUE (invalid argument)"
std::string error_text(int code);

// Throws Error(kFailed) unless `code` is success: "<where>: <call> must succeed; got <error>".
void check(int code, const std::string& where, const char* call);

// The primary context of a device, retained once a process.
api::Context primary_context(int device);

// Makes a context the calling thread's inside a scope; does nothing where it is already.
class ContextGuard {
 public:
  // Throws Error(kFailed).
  ContextGuard(api::Context context, const std::string& where);
  ~ContextGuard();
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;

 private:
  bool is_pushed_ = false;
};

}  // namespace ftrt::cuda
