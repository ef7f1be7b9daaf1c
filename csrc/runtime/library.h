// A shared library opened at run time.
#pragma once

#include <string>

namespace ftrt::cuda {

class Library {
 public:
  // Opens a path, or a name the loader searches for. On failure is_open() is false and problem()
  // has the loader's reason. It is never closed: what it gave out may live as long as the process.
  // Args:
  //   is_global: whether libraries opened later find its symbols.
  explicit Library(const std::string& name, bool is_global = false);

  bool is_open() const { return handle_ != nullptr; }
  const std::string& problem() const { return problem_; }

  // Sets `function` to the symbol; false, and null, where the library has none.
  template <typename F>
  bool resolve(const char* symbol, F*& function) const {
    function = reinterpret_cast<F*>(find(symbol));
    return function != nullptr;
  }

  // File the code at `address` was loaded from; "" if the loader does not know.
  static std::string path_of(const void* address);

 private:
  void* find(const char* symbol) const;

  void* handle_;
  std::string problem_;
};

}  // namespace ftrt::cuda
