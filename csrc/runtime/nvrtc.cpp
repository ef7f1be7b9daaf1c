#include <filesystem>
#include <mutex>
#include <optional>
#include <system_error>

#include "cuda_api.h"
#include "ftrt/cuda_compiler.h"
#include "ftrt/cuda_error.h"
#include "library.h"

namespace ftrt::cuda {
namespace {

struct Compiler {
  api::Nvrtc call;
  CompilerFacts facts;
};

std::mutex mutex;  // of the two below; compilations hold it too
std::optional<Compiler> compiler;

bool resolve_all(const Library& library, api::Nvrtc& table) {
  return library.resolve("nvrtcVersion", table.nvrtcVersion) &&
         library.resolve("nvrtcGetErrorString", table.nvrtcGetErrorString) &&
         library.resolve("nvrtcGetNumSupportedArchs", table.nvrtcGetNumSupportedArchs) &&
         library.resolve("nvrtcGetSupportedArchs", table.nvrtcGetSupportedArchs) &&
         library.resolve("nvrtcCreateProgram", table.nvrtcCreateProgram) &&
         library.resolve("nvrtcCompileProgram", table.nvrtcCompileProgram) &&
         library.resolve("nvrtcGetProgramLogSize", table.nvrtcGetProgramLogSize) &&
         library.resolve("nvrtcGetProgramLog", table.nvrtcGetProgramLog) &&
         library.resolve("nvrtcGetCUBINSize", table.nvrtcGetCUBINSize) &&
         library.resolve("nvrtcGetCUBIN", table.nvrtcGetCUBIN) &&
         library.resolve("nvrtcDestroyProgram", table.nvrtcDestroyProgram);
}

// libnvrtc-builtins.so.* in the folder of `path`. A failure shows later, in NVRTC's own message.
void preload_builtins(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (folder.empty()) return;
  std::error_code error;
  for (const auto& file : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = file.path().filename().string();
    if (name.rfind("libnvrtc-builtins.so.", 0) == 0) Library(file.path().string(), true);
  }
}

// None where it does not load; `problem` then says why.
std::optional<Compiler> try_open(const std::string& candidate, std::string& problem) {
  preload_builtins(candidate);
  const Library library(candidate);
  if (!library.is_open()) {
    problem = library.problem();
    return std::nullopt;
  }
  Compiler opened{};
  CompilerFacts& facts = opened.facts;
  int count = 0;
  if (!resolve_all(library, opened.call) ||
      opened.call.nvrtcVersion(&facts.major, &facts.minor) != api::kSuccess ||
      opened.call.nvrtcGetNumSupportedArchs(&count) != api::kSuccess || count < 0) {
    problem = candidate + ": is no NVRTC of CUDA 12 or newer";
    return std::nullopt;
  }
  facts.arches.resize(static_cast<size_t>(count));
  if (count > 0) opened.call.nvrtcGetSupportedArchs(facts.arches.data());
  facts.path = Library::path_of(reinterpret_cast<const void*>(opened.call.nvrtcVersion));
  return opened;
}

std::string version(const CompilerFacts& facts) {
  return "NVRTC " + std::to_string(facts.major) + "." + std::to_string(facts.minor);
}

class ProgramHandle {
 public:
  ProgramHandle(const api::Nvrtc& call, const Source& source) : call_(call) {
    std::vector<const char*> texts, names;
    for (const auto& [name, text] : source.headers) {
      names.push_back(name.c_str());
      texts.push_back(text.c_str());
    }
    check(call.nvrtcCreateProgram(&program_, source.text.c_str(), source.name.c_str(),
                                  static_cast<int>(texts.size()), texts.data(), names.data()),
          "nvrtcCreateProgram");
  }
  ~ProgramHandle() { call_.nvrtcDestroyProgram(&program_); }
  ProgramHandle(const ProgramHandle&) = delete;
  ProgramHandle& operator=(const ProgramHandle&) = delete;

  int compile(const std::vector<std::string>& options) {
    std::vector<const char*> texts;
    for (const std::string& option : options) texts.push_back(option.c_str());
    return call_.nvrtcCompileProgram(program_, static_cast<int>(texts.size()), texts.data());
  }

  std::string log() {
    size_t bytes = 0;
    check(call_.nvrtcGetProgramLogSize(program_, &bytes), "nvrtcGetProgramLogSize");
    std::string text(bytes, '\0');
    if (bytes > 0) check(call_.nvrtcGetProgramLog(program_, text.data()), "nvrtcGetProgramLog");
    while (!text.empty() && (text.back() == '\0' || text.back() == '\n')) text.pop_back();
    return text;
  }

  std::string image() {
    size_t bytes = 0;
    check(call_.nvrtcGetCUBINSize(program_, &bytes), "nvrtcGetCUBINSize");
    std::string cubin(bytes, '\0');
    check(call_.nvrtcGetCUBIN(program_, cubin.data()), "nvrtcGetCUBIN");
    return cubin;
  }

 private:
  void check(int code, const char* name) {
    if (code == api::kSuccess) return;
    throw Error(Fault::kFailed, std::string("NVRTC: ") + name + " must succeed; got " +
                                    call_.nvrtcGetErrorString(code));
  }

  const api::Nvrtc& call_;
  api::Program program_ = nullptr;
};

std::string joined(const std::vector<std::string>& options) {
  std::string text;
  for (const std::string& option : options) text += (text.empty() ? "" : " ") + option;
  return text;
}

}  // namespace

const CompilerFacts& open_compiler(const std::vector<std::string>& candidates) {
  const std::lock_guard lock(mutex);
  if (compiler) return compiler->facts;
  std::string problems;
  for (const std::string& candidate : candidates) {
    std::string problem;
    compiler = try_open(candidate, problem);
    if (compiler) return compiler->facts;
    problems += (problems.empty() ? "" : "; ") + problem;
  }
  throw Error(Fault::kMissing, "NVRTC: libnvrtc must load; got " +
                                   (problems.empty() ? "no library to try" : problems));
}

Compiled compile(const Source& source, const std::string& arch, bool is_verbose) {
  const std::lock_guard lock(mutex);
  if (!compiler) throw Error(Fault::kMissing, "NVRTC: open_compiler must come first; got compile");
  std::vector<std::string> options = {"--gpu-architecture=sm_" + arch};
  options.insert(options.end(), source.options.begin(), source.options.end());
  if (is_verbose) options.emplace_back("--ptxas-options=-v");
  ProgramHandle program(compiler->call, source);
  const int code = program.compile(options);
  std::string log = program.log();
  if (code != api::kSuccess) {
    const bool is_source = code == api::kCompilation;
    throw Error(is_source ? Fault::kInvalid : Fault::kFailed,
                source.name + ": must compile with " + version(compiler->facts) + ", options " +
                    joined(options) + "; got " + compiler->call.nvrtcGetErrorString(code) +
                    (log.empty() ? "" : ":\n" + log));
  }
  return {program.image(), std::move(log)};
}

}  // namespace ftrt::cuda
