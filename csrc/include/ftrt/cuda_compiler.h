// NVRTC: CUDA C++ source -> cubin, for any architecture, on any machine.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace ftrt::cuda {

struct CompilerFacts {
  std::string path;  // of libnvrtc, as the loader found it
  int major;         // version, 13 and 0 for CUDA 13.0
  int minor;
  std::vector<int> arches;  // that it compiles for, 90 for sm_90 and sm_90a
};

// A translation unit: all that its cubin depends on, beside architecture and compiler.
struct Source {
  std::string name;  // of the file, in messages of the compiler
  std::string text;
  std::vector<std::pair<std::string, std::string>> headers;  // name in an include, text
  std::vector<std::string> options;
};

struct Compiled {
  std::string image;  // the cubin
  std::string log;    // warnings, and resources if asked for; may be empty
};

// Opens the first of `candidates` (paths, or names the loader searches for) that loads, once a
// process; later calls return what the first successful one did. The compiler's own builtins are
// loaded first from the same folder: NVRTC looks for them by a bare name, and does not find them
// where wheels put them.
// Throws Error(kMissing): none loads; the message has the loader's reason for each.
const CompilerFacts& open_compiler(const std::vector<std::string>& candidates);

// Compiles for `arch`, "90a" for sm_90a; open_compiler() came before. One compilation at a time.
// Args:
//   is_verbose: the log says what each kernel uses: registers, spills, shared memory.
// Throws Error: kInvalid with the compiler's log where the source is at fault; else kFailed.
Compiled compile(const Source& source, const std::string& arch, bool is_verbose);

}  // namespace ftrt::cuda
