#include "driver.h"

#include <map>
#include <mutex>

#include "ftrt/cuda_driver.h"
#include "ftrt/cuda_error.h"
#include "library.h"

namespace ftrt::cuda {
namespace {

constexpr const char* kName = "libcuda.so.1";
constexpr const char* kWhere = "CUDA driver";

// Symbols are looked up by the name their declaration has for good, so dlsym suffices and
// cuGetProcAddress, which picks among versions, is not needed.
bool resolve_all(const Library& library, api::Driver& table, std::string& missing) {
#define FTRT_RESOLVE(name)                 \
  if (!library.resolve(#name, table.name)) \
  missing += std::string(missing.empty() ? "" : ", ") + #name
  FTRT_RESOLVE(cuInit);
  FTRT_RESOLVE(cuDriverGetVersion);
  FTRT_RESOLVE(cuGetErrorName);
  FTRT_RESOLVE(cuGetErrorString);
  FTRT_RESOLVE(cuDeviceGetCount);
  FTRT_RESOLVE(cuDeviceGet);
  FTRT_RESOLVE(cuDeviceGetName);
  FTRT_RESOLVE(cuDeviceGetAttribute);
  FTRT_RESOLVE(cuDevicePrimaryCtxRetain);
  FTRT_RESOLVE(cuCtxGetCurrent);
  FTRT_RESOLVE(cuCtxPushCurrent_v2);
  FTRT_RESOLVE(cuCtxPopCurrent_v2);
  FTRT_RESOLVE(cuThreadExchangeStreamCaptureMode);
  FTRT_RESOLVE(cuModuleLoadData);
  FTRT_RESOLVE(cuModuleUnload);
  FTRT_RESOLVE(cuModuleGetFunction);
  FTRT_RESOLVE(cuFuncGetAttribute);
  FTRT_RESOLVE(cuFuncSetAttribute);
  FTRT_RESOLVE(cuLaunchKernel);
#undef FTRT_RESOLVE
  library.resolve("cuFuncLoad", table.cuFuncLoad);
  library.resolve("cuFuncGetParamInfo", table.cuFuncGetParamInfo);
  return missing.empty();
}

std::string name_error(const api::Driver& table, int code) {
  const char* name = nullptr;
  const char* text = nullptr;
  table.cuGetErrorName(code, &name);
  table.cuGetErrorString(code, &text);
  const std::string known = name == nullptr ? "CUDA error " + std::to_string(code) : name;
  return text == nullptr ? known : known + " (" + text + ")";
}

api::Driver open_driver() {
  const Library library(kName);
  if (!library.is_open()) {
    throw Error(Fault::kMissing,
                std::string(kWhere) + ": " + kName + " must be there; got " + library.problem() +
                    ". Install NVIDIA's driver; in a container, start it with the GPUs"
                    " (docker run --gpus all)");
  }
  api::Driver table{};
  std::string missing;
  if (!resolve_all(library, table, missing)) {
    throw Error(Fault::kMissing, std::string(kWhere) + ": " + kName +
                                     " must have the functions of CUDA 12; got none of " + missing +
                                     ". Install a driver of series 525 or newer");
  }
  if (const int code = table.cuInit(0); code != api::kSuccess) {
    throw Error(Fault::kMissing, std::string(kWhere) + ": cuInit must succeed; got " +
                                     name_error(table, code) +
                                     ". nvidia-smi shows whether the driver sees a GPU;"
                                     " CUDA_VISIBLE_DEVICES may hide it");
  }
  return table;
}

api::Device find_device(int device) {
  const int count = device_count();
  if (device < 0 || device >= count) {
    throw Error(Fault::kInvalid, "cuda:" + std::to_string(device) + ": must be one of the " +
                                     std::to_string(count) + " devices; got " +
                                     std::to_string(device));
  }
  api::Device handle;
  check(driver().cuDeviceGet(&handle, device), kWhere, "cuDeviceGet");
  return handle;
}

int attribute(api::Device device, int which) {
  int value;
  check(driver().cuDeviceGetAttribute(&value, which, device), kWhere, "cuDeviceGetAttribute");
  return value;
}

}  // namespace

const api::Driver& driver() {
  static const api::Driver table = open_driver();
  return table;
}

std::string error_text(int code) { return name_error(driver(), code); }

void check(int code, const std::string& where, const char* call) {
  if (code == api::kSuccess) return;
  throw Error(Fault::kFailed, where + ": " + call + " must succeed; got " + error_text(code));
}

DriverFacts driver_facts() {
  int version;
  check(driver().cuDriverGetVersion(&version), kWhere, "cuDriverGetVersion");
  return {Library::path_of(reinterpret_cast<const void*>(driver().cuInit)), version};
}

int device_count() {
  int count;
  check(driver().cuDeviceGetCount(&count), kWhere, "cuDeviceGetCount");
  return count;
}

DeviceFacts device_facts(int device) {
  const api::Device handle = find_device(device);
  char name[256] = "";
  check(driver().cuDeviceGetName(name, sizeof(name), handle), kWhere, "cuDeviceGetName");
  return {name, attribute(handle, api::kCapabilityMajor), attribute(handle, api::kCapabilityMinor),
          attribute(handle, api::kMultiprocessorCount),
          attribute(handle, api::kMaxSharedPerBlockOptin)};
}

api::Context primary_context(int device) {
  static std::mutex mutex;
  static std::map<int, api::Context> retained;
  const std::lock_guard lock(mutex);
  const auto found = retained.find(device);
  if (found != retained.end()) return found->second;
  api::Context context;
  check(driver().cuDevicePrimaryCtxRetain(&context, find_device(device)),
        "cuda:" + std::to_string(device), "cuDevicePrimaryCtxRetain");
  return retained[device] = context;
}

ContextGuard::ContextGuard(api::Context context, const std::string& where) {
  api::Context current = nullptr;
  check(driver().cuCtxGetCurrent(&current), where, "cuCtxGetCurrent");
  if (current == context) return;
  check(driver().cuCtxPushCurrent_v2(context), where, "cuCtxPushCurrent");
  is_pushed_ = true;
}

ContextGuard::~ContextGuard() {
  api::Context popped;
  if (is_pushed_) driver().cuCtxPopCurrent_v2(&popped);
}

}  // namespace ftrt::cuda
