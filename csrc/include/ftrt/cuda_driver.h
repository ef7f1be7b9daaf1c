// The CUDA driver: what devices there are, and kernels loaded and launched on them.
//
// libcuda is opened on first use; without it everything here throws Error(kMissing) and nothing
// else in the extension is affected.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace ftrt::cuda {

struct DriverFacts {
  std::string path;  // of the library, as the loader found it
  int version;       // newest CUDA it knows: 13000 for 13.0
};

struct DeviceFacts {
  std::string name;
  int major;  // compute capability
  int minor;
  int multiprocessors;
  int shared_limit;  // most bytes of shared memory a block may have, opted in
};

// Initialises the driver, which a process that forks afterwards cannot share with its children.
// Throws Error(kMissing).
DriverFacts driver_facts();

// Throws Error(kMissing).
int device_count();

// Throws Error(kInvalid) for a device that is not there.
DeviceFacts device_facts(int device);

struct Grid {
  uint32_t x, y, z;  // blocks
};

// One kernel on one device, ready to launch. It is loaded into the primary context, the one torch
// uses, and stays there as long as the process lives.
class Function {
 public:
  // Args:
  //   image: (image_bytes), a cubin for the device.
  //   name: of the kernel in it. label: its name in messages.
  //   threads: in a block.
  //   parameter_bytes: of the buffer that launches will pass; checked against the kernel where the
  //     driver can tell (CUDA 12.4).
  // Throws Error: the driver refuses the image, or the kernel is not as said.
  Function(const std::string& image, const std::string& name, const std::string& label, int device,
           int threads, size_t parameter_bytes);

  // Launches on `stream` (a CUstream of the device), without waiting. Nothing is allocated and
  // nothing synchronises, so a CUDA graph may capture it. Safe in several threads.
  // Args:
  //   shared_bytes: of dynamic shared memory.
  //   parameters: (bytes), the kernel's parameters as C++ lays out a struct of them.
  // Throws Error: launch configuration, or the driver's failure, with both.
  void launch(const Grid& grid, uint32_t shared_bytes, void* stream, const void* parameters,
              size_t bytes) const;

  int registers() const { return registers_; }
  // Bytes a thread spills or indexes in memory of its own.
  int local_bytes() const { return local_bytes_; }
  // Bytes of shared memory the kernel declares itself.
  int static_shared_bytes() const { return static_shared_bytes_; }
  // Most bytes of dynamic shared memory a launch may ask for.
  int dynamic_shared_limit() const { return dynamic_shared_limit_; }

 private:
  void check_parameters(size_t bytes) const;
  [[noreturn]] void fail_launch(int code, const Grid& grid, uint32_t shared_bytes) const;

  std::string label_;
  int device_;
  int threads_;
  size_t parameter_bytes_;
  void* context_;
  void* function_;
  int registers_, local_bytes_, static_shared_bytes_, dynamic_shared_limit_;
};

}  // namespace ftrt::cuda
