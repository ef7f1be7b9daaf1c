// Files that are complete or not there, and folders nobody else may write.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ftrt::cuda {

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();

  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }

 private:
  int fd_;
};

// A folder that exists. Throws std::system_error.
Descriptor open_folder(const std::string& path);

// A folder that only this user may write, created with mode 0700 if it is not there: what lies in
// it will run. Throws std::system_error; where the folder is another user's, or others may write
// it, or it is a symbolic link, its text says so.
Descriptor open_private_folder(const std::string& path);

// The bytes of a file in `folder`; none if it is not there. Throws std::system_error, also where it
// is no regular file.
std::optional<std::string> read_file(const Descriptor& folder, const std::string& name);

// Puts a file into `folder` under its name, or leaves the folder as it was: writes another, named
// `name`.<process>.tmp, makes it durable and renames it. Throws std::system_error.
// Args:
//   mode: permissions, less those that the umask takes.
void write_file(const Descriptor& folder, const std::string& name, std::string_view bytes,
                unsigned mode);

// Removes what a killed write_file() has left: temporary files of `name`, whose writer must hold
// the lock that the caller does, and any that are an hour old.
void sweep_temporary(const Descriptor& folder, const std::string& name);

// Names in a folder, sorted.
std::vector<std::string> list_folder(const Descriptor& folder);

}  // namespace ftrt::cuda
