#include "library.h"

#include <dlfcn.h>

namespace ftrt::cuda {

Library::Library(const std::string& name, bool is_global)
    : handle_(dlopen(name.c_str(), RTLD_NOW | (is_global ? RTLD_GLOBAL : RTLD_LOCAL))) {
  if (handle_ == nullptr) {
    const char* reason = dlerror();
    problem_ = reason == nullptr ? name + ": cannot be opened" : reason;
  }
}

void* Library::find(const char* symbol) const { return dlsym(handle_, symbol); }

std::string Library::path_of(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return "";
  return info.dli_fname;
}

}  // namespace ftrt::cuda
