#include "files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <ctime>
#include <filesystem>
#include <system_error>

namespace ftrt::cuda {
namespace {

constexpr const char* kTemporary = ".tmp";
constexpr time_t kStaleSeconds = 3600;

[[noreturn]] void fail(const std::string& what, int code = errno) {
  throw std::system_error(code, std::generic_category(), what);
}

struct stat facts_of(const Descriptor& file, const std::string& name) {
  struct stat facts;
  if (fstat(file.get(), &facts) != 0) fail(name);
  return facts;
}

void write_all(const Descriptor& file, const std::string& name, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(file.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(name);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  if (fsync(file.get()) != 0) fail(name);
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

Descriptor open_folder(const std::string& path) {
  Descriptor folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.is_open()) fail(path);
  return folder;
}

Descriptor open_private_folder(const std::string& path) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) fail(path);
  Descriptor folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (!folder.is_open()) fail(path);
  const struct stat facts = facts_of(folder, path);
  if (facts.st_uid != geteuid()) {
    fail(path + " belongs to user " + std::to_string(facts.st_uid), EPERM);
  }
  if ((facts.st_mode & 022) != 0) fail(path + " may be written by other users", EPERM);
  return folder;
}

std::optional<std::string> read_file(const Descriptor& folder, const std::string& name) {
  // O_NONBLOCK: opening a pipe would wait for its writer
  const Descriptor file(
      openat(folder.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.is_open() && errno == ENOENT) return std::nullopt;
  if (!file.is_open()) fail(name);
  const struct stat facts = facts_of(file, name);
  if (!S_ISREG(facts.st_mode)) fail(name + " is no regular file", EINVAL);
  std::string bytes(static_cast<size_t>(facts.st_size), '\0');
  size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t got = read(file.get(), bytes.data() + filled, bytes.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(name);
    if (got == 0) break;  // it has become shorter
    filled += static_cast<size_t>(got);
  }
  bytes.resize(filled);
  return bytes;
}

void write_file(const Descriptor& folder, const std::string& name, std::string_view bytes,
                unsigned mode) {
  static std::atomic<unsigned> counter{0};  // tells the threads of a process apart
  const std::string temporary =
      name + "." + std::to_string(getpid()) + "-" + std::to_string(counter++) + kTemporary;
  // One with this name was left by a process that had our id.
  unlinkat(folder.get(), temporary.c_str(), 0);
  const Descriptor file(openat(folder.get(), temporary.c_str(),
                               O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!file.is_open()) fail(temporary);
  try {
    write_all(file, temporary, bytes);
    if (renameat(folder.get(), temporary.c_str(), folder.get(), name.c_str()) != 0) fail(name);
  } catch (...) {
    unlinkat(folder.get(), temporary.c_str(), 0);
    throw;
  }
  fsync(folder.get());  // the entry is valid without: at worst it is compiled again after a crash
}

void sweep_temporary(const Descriptor& folder, const std::string& name) {
  const time_t oldest = time(nullptr) - kStaleSeconds;
  for (const std::string& file : list_folder(folder)) {
    struct stat facts;
    if (!file.ends_with(kTemporary) ||
        fstatat(folder.get(), file.c_str(), &facts, AT_SYMLINK_NOFOLLOW) != 0) {
      continue;
    }
    if (file.starts_with(name + ".") || facts.st_mtime < oldest) {
      unlinkat(folder.get(), file.c_str(), 0);
    }
  }
}

std::vector<std::string> list_folder(const Descriptor& folder) {
  std::vector<std::string> names;
  const int copy = openat(folder.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* stream = copy < 0 ? nullptr : fdopendir(copy);
  if (stream == nullptr) {
    const int code = errno;
    if (copy >= 0) close(copy);
    fail("listing a folder", code);
  }
  while (const dirent* found = readdir(stream)) names.emplace_back(found->d_name);
  closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace ftrt::cuda
