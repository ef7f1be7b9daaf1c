// Cubins on disk: a cache that many processes share, and bundles that are built ahead.
//
// An entry is one file that proves what it is: its header has the key, and a SHA-256 over the rest.
// A bundle is a folder of entries, or one file of entries one after another.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ftrt/cuda_compiler.h"

namespace ftrt::cuda {

struct Entry {
  std::string key;    // 64 hexadecimal digits, see source_key()
  std::string label;  // for people: kernel and architecture
  int major;          // version of the NVRTC that made it
  int minor;
  std::string image;
};

// What a cubin is looked up by: SHA-256 over source, headers, options and architecture. The
// compiler's version is not among them; it is beside the key in the entry and in its name.
std::string source_key(const Source& source, const std::string& arch);

// The bytes of an entry's file.
std::string encode_entry(const Entry& entry);

// The first entry of `bytes`, which loses it. Throws std::invalid_argument: what is wrong with it.
Entry take_entry(std::string_view& bytes);

// Key of the first entry of `bytes`, and how many bytes the entry has, of which nothing but the
// lengths is checked. Throws as take_entry().
std::pair<std::string_view, size_t> peek_entry(std::string_view bytes);

// The entry with this key in a bundle, a folder or a file. None where it is not; a note where it is
// damaged.
std::optional<Entry> find_in_bundle(const std::string& path, const std::string& key,
                                    std::vector<std::string>& notes);

// The same in the bytes of a bundle's file; `file` is its name in notes.
std::optional<Entry> find_in_bytes(const std::string& file, std::string_view bytes,
                                   const std::string& key, std::vector<std::string>& notes);

// Writes entries as a bundle: a folder of files if `path` is a folder or has no suffix, else one
// file. Each file is complete or not there.
// Throws std::system_error.
void write_bundle(const std::string& path, const std::vector<Entry>& entries);

// The newest entry with this key, of whichever compiler, in a cache folder.
std::optional<Entry> find_in_cache(const std::string& folder, const std::string& key,
                                   std::vector<std::string>& notes);

struct Waiting {
  bool is_leader;         // compiles at once; others give the leader time to begin
  double leader_seconds;  // how long others wait for the leader to begin
  double lock_seconds;    // how long everybody waits for the process that compiles
};

struct Cached {
  Entry entry;
  bool was_compiled;  // by this call
  std::string log;    // of the compiler, if so
};

// The cubin from the cache folder, compiled and put there if it is not: by one process while others
// wait for it, and by this one alone, in memory, where the folder cannot be used; the note says
// why. Throws Error as compile() does.
Cached compile_cached(const Source& source, const std::string& arch, const std::string& label,
                      const std::string& folder, const Waiting& waiting,
                      std::vector<std::string>& notes);

struct Listed {
  std::string file;     // name within the folder, or the bundle's path
  std::string problem;  // why it is no entry; empty if it is one
  Entry entry;          // without its image
  uint64_t bytes;
};

// What a cache folder or a bundle holds, by file name. Throws std::system_error.
std::vector<Listed> list_entries(const std::string& path);

// The same of the bytes of a bundle's file, named `file`.
std::vector<Listed> list_bytes(const std::string& file, std::string_view bytes);

}  // namespace ftrt::cuda
