#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <tuple>

#include "files.h"
#include "ftrt/cuda_cache.h"

namespace ftrt::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kSuffix = ".cubin";
constexpr const char* kFix =
    "; set FTRT_CACHE_DIR to a folder that you may write and that has room";

std::string plain(double seconds) {
  std::string text = std::to_string(seconds);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.ends_with('.')) text.pop_back();
  return text;
}

// One key in one cache folder.
class Slot {
 public:
  Slot(const std::string& folder, const std::string& key, int major, int minor)
      : path_(folder),
        key_(key),
        major_(major),
        minor_(minor),
        name_(key + "-" + std::to_string(major) + "." + std::to_string(minor) + kSuffix),
        folder_(open_private_folder(folder)) {}

  // The entry, if it is there and whole; otherwise a note unless one was given before.
  std::optional<Entry> read(std::vector<std::string>& notes) {
    std::string problem;
    try {
      const std::optional<std::string> bytes = read_file(folder_, name_);
      if (!bytes) return std::nullopt;
      std::string_view rest = *bytes;
      Entry entry = take_entry(rest);
      if (entry.key == key_ && entry.major == major_ && entry.minor == minor_ && rest.empty()) {
        return entry;
      }
      problem = name_ + " is another kernel's";
    } catch (const std::invalid_argument& error) {
      problem = name_ + " " + error.what();
    } catch (const std::system_error& error) {
      problem = error.what();
    }
    if (!has_noted_) notes.push_back("kernel cache: " + path_ + "/" + problem + "; compiled again");
    has_noted_ = true;
    return std::nullopt;
  }

  // Opens the lock's file. Throws std::system_error.
  Descriptor open_lock() const {
    const std::string name = name_ + ".lock";
    Descriptor file(
        openat(folder_.get(), name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.is_open()) throw std::system_error(errno, std::generic_category(), path_);
    return file;
  }

  // Called by who holds the lock. Who waits for it finds the entry; who comes later looks for that
  // first, and makes another lock.
  void remove_lock() const { unlinkat(folder_.get(), (name_ + ".lock").c_str(), 0); }

  // Throws std::system_error.
  void store(const Entry& entry) const { write_file(folder_, name_, encode_entry(entry), 0600); }

  void sweep() const { sweep_temporary(folder_, name_); }

 private:
  std::string path_, key_;
  int major_, minor_;
  std::string name_;
  Descriptor folder_;
  bool has_noted_ = false;
};

// flock() without waiting. Throws std::system_error where the file system has no locks.
bool try_lock(const Descriptor& lock) {
  if (flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return true;
  if (errno == EWOULDBLOCK || errno == EINTR) return false;
  throw std::system_error(errno, std::generic_category(), "flock");
}

// Waits until this process holds the lock and may compile, or the entry is there (returned), or it
// has waited long enough. `has_lock` says whether it holds the lock.
std::optional<Entry> wait_for_turn(Slot& slot, const Descriptor& lock, const std::string& label,
                                   const Waiting& waiting, std::vector<std::string>& notes,
                                   bool& has_lock) {
  auto pause = std::chrono::milliseconds(10);
  const auto begin = Clock::now();
  double free_seconds = 0;  // how long the lock was nobody's
  for (auto before = begin;; pause = std::min(2 * pause, std::chrono::milliseconds(100))) {
    has_lock = try_lock(lock);
    if (std::optional<Entry> entry = slot.read(notes)) return entry;
    const auto now = Clock::now();
    if (has_lock) {
      free_seconds += std::chrono::duration<double>(now - before).count();
      if (waiting.is_leader) return std::nullopt;
      if (free_seconds >= waiting.leader_seconds) {
        notes.push_back("kernel cache: local rank 0 has not begun to compile " + label +
                        " within " + plain(waiting.leader_seconds) + " s; compiled by this rank");
        return std::nullopt;
      }
      flock(lock.get(), LOCK_UN);
      has_lock = false;
    } else if (std::chrono::duration<double>(now - begin).count() >= waiting.lock_seconds) {
      notes.push_back("kernel cache: another process has not compiled " + label + " within " +
                      plain(waiting.lock_seconds) + " s; compiled by this one");
      return std::nullopt;
    }
    before = now;
    std::this_thread::sleep_for(pause);
  }
}

void note_unusable(const std::string& folder, const std::system_error& error,
                   std::vector<std::string>& notes) {
  notes.push_back("kernel cache: kernels cannot be kept in " + folder + ": " + error.what() +
                  "; each process compiles its own" + kFix);
}

}  // namespace

Cached compile_cached(const Source& source, const std::string& arch, const std::string& label,
                      const std::string& folder, const Waiting& waiting,
                      std::vector<std::string>& notes) {
  const CompilerFacts& compiler = open_compiler({});
  const std::string key = source_key(source, arch);
  const auto compile_entry = [&]() -> Cached {
    Compiled made = compile(source, arch, false);
    return {{key, label, compiler.major, compiler.minor, std::move(made.image)}, true, made.log};
  };
  std::optional<Slot> slot;
  Descriptor lock;
  bool has_lock = false;
  try {
    slot.emplace(folder, key, compiler.major, compiler.minor);
    if (std::optional<Entry> entry = slot->read(notes)) return {std::move(*entry), false, ""};
    lock = slot->open_lock();
  } catch (const std::system_error& error) {
    note_unusable(folder, error, notes);
    return compile_entry();
  }
  try {
    std::optional<Entry> entry = wait_for_turn(*slot, lock, label, waiting, notes, has_lock);
    if (entry) {
      if (has_lock) slot->remove_lock();
      return {std::move(*entry), false, ""};
    }
  } catch (const std::system_error& error) {  // no locks here: writing is safe without them
    notes.push_back("kernel cache: files in " + folder + " cannot be locked: " + error.what() +
                    "; several processes may compile the same kernel");
  }
  try {
    Cached made = compile_entry();
    try {
      if (has_lock) slot->sweep();
      slot->store(made.entry);
    } catch (const std::system_error& error) {
      note_unusable(folder, error, notes);
    }
    if (has_lock) slot->remove_lock();
    return made;
  } catch (...) {
    if (has_lock) slot->remove_lock();
    throw;
  }
}

std::optional<Entry> find_in_cache(const std::string& folder, const std::string& key,
                                   std::vector<std::string>& notes) {
  std::vector<std::tuple<int, int>> versions;
  try {
    for (const std::string& name : list_folder(open_folder(folder))) {
      int major, minor;
      if (name.starts_with(key + "-") && name.ends_with(kSuffix) &&
          sscanf(name.c_str() + key.size() + 1, "%d.%d", &major, &minor) == 2) {
        versions.emplace_back(major, minor);
      }
    }
    std::sort(versions.rbegin(), versions.rend());
    for (const auto& [major, minor] : versions) {
      if (auto entry = Slot(folder, key, major, minor).read(notes)) return entry;
    }
  } catch (const std::system_error& error) {
    if (error.code() != std::errc::no_such_file_or_directory) {
      notes.push_back("kernel cache: " + std::string(error.what()) + kFix);
    }
  }
  return std::nullopt;
}

}  // namespace ftrt::cuda
