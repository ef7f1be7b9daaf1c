// An entry's file, integers little-endian:
//
//     8  "FTRTCUB1"
//    32  SHA-256 of all that follows
//    64  key, hexadecimal
//     4  major version of NVRTC     4  minor version
//     4  bytes of the label         8  bytes of the image
//        label, image
#include <stdexcept>

#include "ftrt/cuda_cache.h"
#include "sha256.h"

namespace ftrt::cuda {
namespace {

constexpr std::string_view kMagic = "FTRTCUB1";
constexpr size_t kHashBytes = 32;
constexpr size_t kKeyBytes = 64;
constexpr size_t kFieldBytes = kKeyBytes + 3 * 4 + 8;
constexpr size_t kHeaderBytes = kMagic.size() + kHashBytes + kFieldBytes;

std::string number(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> (8 * i)));
  return text;
}

// Takes `size` bytes off the front.
std::string_view take(std::string_view& bytes, size_t size) {
  const std::string_view front = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return front;
}

uint64_t take_number(std::string_view& bytes, size_t size) {
  uint64_t value = 0;
  const std::string_view digits = take(bytes, size);
  for (size_t i = size; i-- > 0;) value = value << 8 | static_cast<unsigned char>(digits[i]);
  return value;
}

// A field of a key, such that no two lists of fields give the same bytes.
void add(Sha256& hash, std::string_view field) {
  hash.update(number(field.size(), 8));
  hash.update(field);
}

}  // namespace

std::string source_key(const Source& source, const std::string& arch) {
  Sha256 hash;
  add(hash, source.name);
  add(hash, source.text);
  add(hash, number(source.headers.size(), 8));
  for (const auto& [name, text] : source.headers) {
    add(hash, name);
    add(hash, text);
  }
  for (const std::string& option : source.options) add(hash, option);
  add(hash, arch);
  return hexadecimal(hash.digest());
}

std::string encode_entry(const Entry& entry) {
  std::string rest = entry.key + number(static_cast<uint64_t>(entry.major), 4) +
                     number(static_cast<uint64_t>(entry.minor), 4) + number(entry.label.size(), 4) +
                     number(entry.image.size(), 8) + entry.label + entry.image;
  return std::string(kMagic) + sha256(rest) + rest;
}

std::pair<std::string_view, size_t> peek_entry(std::string_view bytes) {
  if (!bytes.starts_with(kMagic)) throw std::invalid_argument("does not begin as a cubin of ftrt");
  if (bytes.size() < kHeaderBytes) throw std::invalid_argument("is cut short");
  std::string_view rest = bytes.substr(kMagic.size() + kHashBytes);
  const std::string_view key = take(rest, kKeyBytes);
  take(rest, 2 * 4);
  const uint64_t label_bytes = take_number(rest, 4);
  const uint64_t image_bytes = take_number(rest, 8);
  if (image_bytes > rest.size() || label_bytes > rest.size() - image_bytes) {
    throw std::invalid_argument("is cut short");
  }
  return {key, kHeaderBytes + label_bytes + image_bytes};
}

Entry take_entry(std::string_view& bytes) {
  std::string_view rest = bytes.substr(0, peek_entry(bytes).second);
  take(rest, kMagic.size());
  const std::string_view hash = take(rest, kHashBytes);
  const std::string_view hashed = rest;
  Entry entry;
  entry.key = take(rest, kKeyBytes);
  entry.major = static_cast<int>(take_number(rest, 4));
  entry.minor = static_cast<int>(take_number(rest, 4));
  const size_t label_bytes = take_number(rest, 4);
  take(rest, 8);
  entry.label = take(rest, label_bytes);
  entry.image = rest;
  if (sha256(hashed) != hash) throw std::invalid_argument("is damaged: its SHA-256 differs");
  bytes.remove_prefix(kMagic.size() + kHashBytes + hashed.size());
  return entry;
}

}  // namespace ftrt::cuda
