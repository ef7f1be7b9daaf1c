#include <sys/stat.h>

#include <filesystem>
#include <stdexcept>
#include <system_error>

#include "files.h"
#include "ftrt/cuda_cache.h"

namespace ftrt::cuda {
namespace {

constexpr const char* kSuffix = ".cubin";
constexpr unsigned kForEverybody = 0666;

bool is_folder(const std::string& path) {
  struct stat facts;
  return stat(path.c_str(), &facts) == 0 && S_ISDIR(facts.st_mode);
}

// Bundles may be read-only and belong to whoever installed them, so any folder will do.
Descriptor folder_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return open_folder(parent.empty() ? "." : parent);
}

std::string name_of(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

Listed listed(const std::string& file, const std::optional<std::string>& bytes) {
  Listed result{file, "", {}, bytes ? bytes->size() : 0};
  try {
    std::string_view rest = bytes ? std::string_view(*bytes) : std::string_view();
    result.entry = take_entry(rest);
    result.entry.image.clear();
    if (!rest.empty()) throw std::invalid_argument("has bytes behind its end");
  } catch (const std::invalid_argument& error) {
    result.problem = error.what();
  }
  return result;
}

}  // namespace

std::optional<Entry> find_in_bytes(const std::string& file, std::string_view bytes,
                                   const std::string& key, std::vector<std::string>& notes) {
  try {
    while (!bytes.empty()) {
      const auto [its_key, size] = peek_entry(bytes);
      if (its_key == key) return take_entry(bytes);
      bytes.remove_prefix(size);
    }
  } catch (const std::invalid_argument& error) {
    notes.push_back("kernel bundle: " + file + " " + error.what() + "; it is not used");
  }
  return std::nullopt;
}

std::optional<Entry> find_in_bundle(const std::string& path, const std::string& key,
                                    std::vector<std::string>& notes) {
  const bool has_files = is_folder(path);
  const std::string file = has_files ? path + "/" + key + kSuffix : path;
  try {
    const std::optional<std::string> bytes = read_file(folder_of(file), name_of(file));
    if (bytes) return find_in_bytes(file, *bytes, key, notes);
    if (!has_files) notes.push_back("kernel bundle: " + file + " is not there; it is not used");
  } catch (const std::system_error& error) {
    notes.push_back("kernel bundle: " + std::string(error.what()) + "; it is not used");
  }
  return std::nullopt;
}

void write_bundle(const std::string& path, const std::vector<Entry>& entries) {
  if (!is_folder(path) && std::filesystem::path(path).has_extension()) {
    std::string bytes;
    for (const Entry& entry : entries) bytes += encode_entry(entry);
    write_file(folder_of(path), name_of(path), bytes, kForEverybody);
    return;
  }
  std::filesystem::create_directories(path);
  const Descriptor folder = open_folder(path);
  for (const Entry& entry : entries) {
    write_file(folder, entry.key + kSuffix, encode_entry(entry), kForEverybody);
  }
}

std::vector<Listed> list_entries(const std::string& path) {
  if (is_folder(path)) {
    std::vector<Listed> found;
    const Descriptor folder = open_folder(path);
    for (const std::string& name : list_folder(folder)) {
      if (!name.ends_with(kSuffix)) continue;
      try {
        found.push_back(listed(name, read_file(folder, name)));
      } catch (const std::system_error& error) {  // a link, or not ours to read
        found.push_back({name, error.what(), {}, 0});
      }
    }
    return found;
  }
  const std::optional<std::string> bytes = read_file(folder_of(path), name_of(path));
  if (!bytes) {
    throw std::system_error(ENOENT, std::generic_category(), path);
  }
  return list_bytes(name_of(path), *bytes);
}

std::vector<Listed> list_bytes(const std::string& file, std::string_view bytes) {
  std::vector<Listed> found;
  try {
    while (!bytes.empty()) {
      const uint64_t size = peek_entry(bytes).second;
      found.push_back({file, "", take_entry(bytes), size});
      found.back().entry.image.clear();
    }
  } catch (const std::invalid_argument& error) {
    found.push_back({file, error.what(), {}, 0});
  }
  return found;
}

}  // namespace ftrt::cuda
