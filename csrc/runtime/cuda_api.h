// What ftrt uses of libcuda and libnvrtc, declared here so that no CUDA header is needed. Names,
// types and numbers are those of cuda.h and nvrtc.h, which NVIDIA keeps compatible: a function
// whose arguments change gets another name (_v2).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ftrt::cuda::api {

using Device = int;     // CUdevice
using Context = void*;  // CUcontext
using Module = void*;   // CUmodule
using Kernel = void*;   // CUfunction
using Stream = void*;   // CUstream
using Program = void*;  // nvrtcProgram

// CUresult
constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;

// CUdevice_attribute
constexpr int kMultiprocessorCount = 16;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;
constexpr int kMaxSharedPerBlockOptin = 97;

// CUfunction_attribute
constexpr int kMaxThreadsPerBlock = 0;
constexpr int kSharedSizeBytes = 1;
constexpr int kLocalSizeBytes = 3;
constexpr int kNumRegs = 4;
constexpr int kMaxDynamicSharedSizeBytes = 8;

// CUstreamCaptureMode
constexpr int kCaptureModeRelaxed = 2;

// Entries of cuLaunchKernel's `extra`.
inline void* const kLaunchParamEnd = reinterpret_cast<void*>(0);
inline void* const kLaunchParamBufferPointer = reinterpret_cast<void*>(1);
inline void* const kLaunchParamBufferSize = reinterpret_cast<void*>(2);

struct Driver {
  int (*cuInit)(unsigned flags);
  int (*cuDriverGetVersion)(int* version);
  int (*cuGetErrorName)(int code, const char** name);
  int (*cuGetErrorString)(int code, const char** text);
  int (*cuDeviceGetCount)(int* count);
  int (*cuDeviceGet)(Device* device, int ordinal);
  int (*cuDeviceGetName)(char* name, int length, Device device);
  int (*cuDeviceGetAttribute)(int* value, int attribute, Device device);
  int (*cuDevicePrimaryCtxRetain)(Context* context, Device device);
  int (*cuCtxGetCurrent)(Context* context);
  int (*cuCtxPushCurrent_v2)(Context context);
  int (*cuCtxPopCurrent_v2)(Context* context);
  int (*cuThreadExchangeStreamCaptureMode)(int* mode);
  int (*cuModuleLoadData)(Module* module, const void* image);
  int (*cuModuleUnload)(Module module);
  int (*cuModuleGetFunction)(Kernel* function, Module module, const char* name);
  int (*cuFuncGetAttribute)(int* value, int attribute, Kernel function);
  int (*cuFuncSetAttribute)(Kernel function, int attribute, int value);
  int (*cuLaunchKernel)(Kernel function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                        Stream stream, void** parameters, void** extra);
  // CUDA 12.4; null before.
  int (*cuFuncLoad)(Kernel function);
  int (*cuFuncGetParamInfo)(Kernel function, size_t index, size_t* offset, size_t* size);
};

struct Nvrtc {
  int (*nvrtcVersion)(int* major, int* minor);
  const char* (*nvrtcGetErrorString)(int code);
  int (*nvrtcGetNumSupportedArchs)(int* count);
  int (*nvrtcGetSupportedArchs)(int* arches);
  int (*nvrtcCreateProgram)(Program* program, const char* text, const char* name, int header_count,
                            const char* const* headers, const char* const* header_names);
  int (*nvrtcCompileProgram)(Program program, int option_count, const char* const* options);
  int (*nvrtcGetProgramLogSize)(Program program, size_t* bytes);
  int (*nvrtcGetProgramLog)(Program program, char* log);
  int (*nvrtcGetCUBINSize)(Program program, size_t* bytes);
  int (*nvrtcGetCUBIN)(Program program, char* image);
  int (*nvrtcDestroyProgram)(Program* program);
};

// nvrtcResult
constexpr int kCompilation = 6;

}  // namespace ftrt::cuda::api
