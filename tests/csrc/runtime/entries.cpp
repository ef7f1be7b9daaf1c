// csrc/runtime under sanitizers: entries that are damaged in every way, the cache in several
// threads, and SHA-256 of what stands on stdin.
//
//     entries sha256                 a line of hexadecimal digits for each length, of stdin's
//     prefixes entries damage                 prints how many damaged entries were refused entries
//     cache NVRTC FOLDER     prints how many of 8 threads have compiled
#include <atomic>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ftrt/cuda_cache.h"
#include "sha256.h"

namespace {

using ftrt::cuda::Entry;

int print_hashes() {
  const std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
  for (size_t size = 0; size <= bytes.size(); ++size) {
    ftrt::cuda::Sha256 in_parts;
    in_parts.update(std::string_view(bytes).substr(0, size / 3));
    in_parts.update(std::string_view(bytes).substr(size / 3, size - size / 3));
    if (in_parts.digest() != ftrt::cuda::sha256(bytes.substr(0, size))) return 1;
    std::puts(ftrt::cuda::hexadecimal(ftrt::cuda::sha256(bytes.substr(0, size))).c_str());
  }
  return 0;
}

// Whether take_entry() refuses `bytes`, which it gets in a buffer of exactly their size.
bool is_refused(const std::string& bytes) {
  const std::unique_ptr<char[]> buffer(new char[bytes.size()]);
  std::memcpy(buffer.get(), bytes.data(), bytes.size());
  std::string_view rest(buffer.get(), bytes.size());
  try {
    ftrt::cuda::take_entry(rest);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

int print_refused() {
  const Entry entry{std::string(64, 'a'), "label", 13, 0, "image"};
  const std::string whole = ftrt::cuda::encode_entry(entry);
  if (is_refused(whole)) return 1;
  int refused = 0, tried = 0;
  for (size_t size = 0; size < whole.size(); ++size, ++tried) {
    refused += is_refused(whole.substr(0, size));
  }
  for (size_t i = 0; i < 8 * whole.size(); ++i, ++tried) {
    std::string changed = whole;
    changed[i / 8] = static_cast<char>(changed[i / 8] ^ (1 << (i % 8)));
    refused += is_refused(changed);
  }
  // lengths that wrap around
  for (size_t i = 8 + 32 + 64 + 8; i < 8 + 32 + 64 + 20; ++i, ++tried) {
    std::string changed = whole;
    for (size_t j = i; j < 8 + 32 + 64 + 20; ++j) changed[j] = '\xff';
    refused += is_refused(changed);
  }
  std::printf("%d of %d\n", refused, tried);
  return 0;
}

int print_compilations(const char* nvrtc, const char* folder) {
  ftrt::cuda::open_compiler({nvrtc});
  std::atomic<int> compiled{0}, noted{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      std::vector<std::string> notes;
      const ftrt::cuda::Source source{"k.cu", "text", {{"h", "t"}}, {"-DX=1"}};
      compiled += ftrt::cuda::compile_cached(source, "80", "k", folder, {i % 2 == 0, 5, 60}, notes)
                      .was_compiled;
      noted += static_cast<int>(notes.size());
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%d %d\n", compiled.load(), noted.load());
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const std::string what = count > 1 ? words[1] : "";
  if (what == "sha256") return print_hashes();
  if (what == "damage") return print_refused();
  if (what == "cache" && count == 4) return print_compilations(words[2], words[3]);
  return 2;
}
