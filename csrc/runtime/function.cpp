#include <string>

#include "driver.h"
#include "ftrt/cuda_driver.h"
#include "ftrt/cuda_error.h"

namespace ftrt::cuda {
namespace {

// Lets this thread load code while one of its streams is captured into a graph: loading may
// allocate, which the other modes forbid although it is no part of the graph.
class RelaxedCapture {
 public:
  RelaxedCapture() { driver().cuThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { driver().cuThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  int mode_ = api::kCaptureModeRelaxed;
};

// Unloads what was loaded unless release() was called.
class LoadedModule {
 public:
  LoadedModule(const std::string& image, const std::string& where) {
    check(driver().cuModuleLoadData(&module_, image.data()), where, "cuModuleLoadData");
  }
  ~LoadedModule() {
    if (module_ != nullptr) driver().cuModuleUnload(module_);
  }
  LoadedModule(const LoadedModule&) = delete;
  LoadedModule& operator=(const LoadedModule&) = delete;

  api::Module get() const { return module_; }
  void release() { module_ = nullptr; }

 private:
  api::Module module_ = nullptr;
};

int attribute(api::Kernel function, int which, const std::string& where) {
  int value;
  check(driver().cuFuncGetAttribute(&value, which, function), where, "cuFuncGetAttribute");
  return value;
}

std::string shape(const Grid& grid, int threads, uint32_t shared_bytes, int shared_limit) {
  return "grid (" + std::to_string(grid.x) + ", " + std::to_string(grid.y) + ", " +
         std::to_string(grid.z) + ") of " + std::to_string(threads) + " threads with " +
         std::to_string(shared_bytes) + " of at most " + std::to_string(shared_limit) +
         " bytes of dynamic shared memory";
}

}  // namespace

Function::Function(const std::string& image, const std::string& name, const std::string& label,
                   int device, int threads, size_t parameter_bytes)
    : label_(label + " on cuda:" + std::to_string(device)),
      device_(device),
      threads_(threads),
      parameter_bytes_(parameter_bytes),
      context_(primary_context(device)) {
  const int shared_limit = device_facts(device).shared_limit;
  const ContextGuard context(context_, label_);
  const RelaxedCapture relaxed;
  LoadedModule module(image, label_);
  check(driver().cuModuleGetFunction(&function_, module.get(), name.c_str()), label_,
        "cuModuleGetFunction");
  if (driver().cuFuncLoad != nullptr) check(driver().cuFuncLoad(function_), label_, "cuFuncLoad");
  registers_ = attribute(function_, api::kNumRegs, label_);
  local_bytes_ = attribute(function_, api::kLocalSizeBytes, label_);
  static_shared_bytes_ = attribute(function_, api::kSharedSizeBytes, label_);
  dynamic_shared_limit_ = shared_limit - static_shared_bytes_;
  const int most = attribute(function_, api::kMaxThreadsPerBlock, label_);
  if (threads < 1 || threads > most) {
    throw Error(Fault::kInvalid, label_ + ": threads must be 1 to " + std::to_string(most) +
                                     ", what its __launch_bounds__ and registers allow; got " +
                                     std::to_string(threads));
  }
  check_parameters(parameter_bytes);
  // The limit is raised once, here: it costs nothing until a launch asks for as much.
  check(driver().cuFuncSetAttribute(function_, api::kMaxDynamicSharedSizeBytes,
                                    dynamic_shared_limit_),
        label_, "cuFuncSetAttribute");
  module.release();
}

void Function::check_parameters(size_t bytes) const {
  if (driver().cuFuncGetParamInfo == nullptr) return;
  size_t end = 0, offset, size;
  for (size_t i = 0; driver().cuFuncGetParamInfo(function_, i, &offset, &size) == api::kSuccess;
       ++i) {
    end = offset + size;
  }
  if (end != bytes) {
    throw Error(Fault::kInvalid,
                label_ + ": the signature must describe the parameters of the kernel, " +
                    std::to_string(end) + " bytes; got " + std::to_string(bytes) + " bytes");
  }
}

void Function::launch(const Grid& grid, uint32_t shared_bytes, void* stream, const void* parameters,
                      size_t bytes) const {
  if (bytes != parameter_bytes_) {
    throw Error(Fault::kInvalid, label_ + ": parameters must be " +
                                     std::to_string(parameter_bytes_) + " bytes; got " +
                                     std::to_string(bytes));
  }
  if (shared_bytes > static_cast<uint32_t>(dynamic_shared_limit_)) {
    throw Error(Fault::kInvalid, label_ + ": a block must fit the device's shared memory; got " +
                                     shape(grid, threads_, shared_bytes, dynamic_shared_limit_));
  }
  const ContextGuard context(context_, label_);
  void* extra[] = {api::kLaunchParamBufferPointer, const_cast<void*>(parameters),
                   api::kLaunchParamBufferSize, &bytes, api::kLaunchParamEnd};
  const int code =
      driver().cuLaunchKernel(function_, grid.x, grid.y, grid.z, static_cast<unsigned>(threads_), 1,
                              1, shared_bytes, stream, nullptr, extra);
  if (code != api::kSuccess) fail_launch(code, grid, shared_bytes);
}

void Function::fail_launch(int code, const Grid& grid, uint32_t shared_bytes) const {
  // Errors of kernels that ran before are reported by whatever call comes next.
  const bool is_ours = code == api::kInvalidValue;
  throw Error(is_ours ? Fault::kInvalid : Fault::kFailed,
              label_ + ": the launch must succeed; got " + error_text(code) + " for " +
                  shape(grid, threads_, shared_bytes, dynamic_shared_limit_) +
                  (is_ours ? ""
                           : ". An earlier kernel may be the cause; CUDA_LAUNCH_BLOCKING=1 in the"
                             " environment shows which"));
}

}  // namespace ftrt::cuda
