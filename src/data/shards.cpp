#include "data/shards.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>

#include "core/check.h"

namespace egmla {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian");

using Header = std::array<int32_t, 256>;

constexpr int32_t kNarrowMagic = 20240520, kNarrowVersion = 1;
constexpr int32_t kWideMagic = 20240801, kWideVersion = 7;
constexpr int64_t kNarrowVocabulary = 65536;

// Token count of a header; wide tells the width of the ids.
int64_t check_header(const std::string& path, const Header& header, bool& wide) {
  wide = header[0] == kWideMagic;
  check_usage(wide || header[0] == kNarrowMagic, "{}: not a token shard: its magic number is {}; expected {} or {}",
              path, header[0], kNarrowMagic, kWideMagic);
  const int32_t version = wide ? kWideVersion : kNarrowVersion;
  check_usage(header[1] == version, "{}: shard version {}; expected {} after magic number {}", path, header[1], version,
              header[0]);
  check_usage(header[2] >= 0, "{}: its header counts {} tokens; expected 0 or more", path, header[2]);
  return header[2];
}

}  // namespace

void Shard::Unmap::operator()(void* map) const {
  ::munmap(map, bytes);
}

Shard::Shard(const std::string& path) : path_(path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  check_usage(!std::filesystem::exists(folder / kUnfinishedMark),
              "{}: the preparation of its folder is not finished; wait for it or run egmla data prepare again", path);
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check_usage(file >= 0, "{}: missing shard: {}; check data.train and data.val", path, system_error_text());
  struct stat info {};
  const bool regular = ::fstat(file, &info) == 0 && S_ISREG(info.st_mode);
  const size_t bytes = regular ? static_cast<size_t>(info.st_size) : 0;
  void* const map = bytes > 0 ? ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  const std::string reason = system_error_text();
  ::close(file);
  if (map != MAP_FAILED) map_ = {map, Unmap{bytes}};
  check_usage(regular, "{}: not a regular file; expected a token shard", path);
  check_usage(bytes >= sizeof(Header),
              "{}: truncated shard: {} bytes; its header alone takes {}; fetch or prepare it again", path, bytes,
              sizeof(Header));
  check(map_ != nullptr, "{}: cannot be mapped into memory: {}", path, reason);
  Header header;
  std::memcpy(header.data(), map, sizeof(header));
  size_ = check_header(path, header, wide_);
  ids_ = static_cast<const char*>(map) + sizeof(Header);
  const size_t expected = sizeof(Header) + static_cast<size_t>(size_) * (wide_ ? 4 : 2);
  check_usage(bytes >= expected, "{}: truncated shard: {} bytes; {} tokens take {}; fetch or prepare it again", path,
              bytes, size_, expected);
  check_usage(bytes == expected, "{}: shard with trailing bytes: {} bytes; {} tokens take {}", path, bytes, size_,
              expected);
}

void Shard::read(int64_t begin, int64_t count, int32_t* out) const {
  check(begin >= 0 && count >= 0 && begin + count <= size_, "{}: tokens {} to {} of a shard that has {}", path_, begin,
        begin + count, size_);
  if (wide_) {
    std::copy_n(static_cast<const int32_t*>(ids_) + begin, count, out);
  } else {
    std::copy_n(static_cast<const uint16_t*>(ids_) + begin, count, out);
  }
}

void Shard::check_ids(int64_t vocab_size, int64_t tokens) const {
  for (int64_t i = 0; i < std::min(tokens, size_); ++i) {
    const int64_t id = static_cast<uint32_t>((*this)[i]);
    check_usage(id < vocab_size,
                "{}: token {} has the id {}; the vocabulary ends at {}; was it made with another tokenizer?", path_, i,
                id, vocab_size - 1);
  }
}

bool is_shard(const std::string& path) {
  int32_t magic = 0;
  std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(&magic), sizeof magic);
  return magic == kNarrowMagic || magic == kWideMagic || path.ends_with(".bin");
}

std::vector<std::string> expand_glob(const std::string& pattern) {
  glob_t found{};
  const int code = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + (code == 0 ? found.gl_pathc : 0));
  ::globfree(&found);
  check_usage(!paths.empty(), "{}: missing shard: nothing matches; make shards with `egmla data prepare`", pattern);
  std::sort(paths.begin(), paths.end());
  return paths;
}

ShardWriter::ShardWriter(std::string directory, std::string name, int64_t vocab_size, int64_t shard_tokens)
    : directory_(std::move(directory)),
      name_(std::move(name)),
      wide_(vocab_size > kNarrowVocabulary),
      shard_tokens_(shard_tokens) {
  check_usage(shard_tokens >= 1 && shard_tokens <= std::numeric_limits<int32_t>::max(),
              "shards: {} tokens a shard; expected 1 to {}", shard_tokens, std::numeric_limits<int32_t>::max());
}

void ShardWriter::append(std::span<const int32_t> ids) {
  while (!ids.empty()) {
    if (!pending_) open();
    const auto count = std::min(ids.size(), static_cast<size_t>(shard_tokens_ - in_shard_));
    const auto part = ids.first(count);
    if (wide_) {
      write(part.data(), part.size_bytes());
    } else {
      const std::vector<uint16_t> narrow(part.begin(), part.end());
      write(narrow.data(), narrow.size() * sizeof(uint16_t));
    }
    in_shard_ += static_cast<int64_t>(count);
    tokens_ += static_cast<int64_t>(count);
    if (in_shard_ == shard_tokens_) close();
    ids = ids.subspan(count);
  }
}

std::vector<std::string> ShardWriter::finish() {
  if (pending_) close();
  return names_;
}

void ShardWriter::open() {
  names_.push_back(fmt::format("{}_{:06}.bin", name_, names_.size()));
  pending_ = std::make_unique<PendingFile>(directory_ + "/" + names_.back());
  file_.open(pending_->path(), std::ios::binary | std::ios::trunc);
  const Header unfinished{};
  write(unfinished.data(), sizeof(unfinished));
}

void ShardWriter::close() {
  Header header{};
  header[0] = wide_ ? kWideMagic : kNarrowMagic;
  header[1] = wide_ ? kWideVersion : kNarrowVersion;
  header[2] = static_cast<int32_t>(in_shard_);
  file_.seekp(0);
  write(header.data(), sizeof(header));
  file_.close();
  check(!file_.fail(), "{}: cannot be written: {}; check free space", pending_->path(), system_error_text());
  pending_->commit();
  pending_.reset();
  in_shard_ = 0;
}

void ShardWriter::write(const void* data, size_t bytes) {
  file_.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  check(file_.good(), "{}: cannot be written: {}; check the directory and free space", pending_->path(),
        system_error_text());
}

}  // namespace egmla
