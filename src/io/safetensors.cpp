#include "io/safetensors.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "core/bf16.h"
#include "core/check.h"
#include "core/files.h"

namespace egmla {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors values are copied as they lie in memory");

using Json = nlohmann::json;

constexpr uint64_t kLargestHeader = 100'000'000;  // as the reference implementation
constexpr int kDeepestHeader = 3;
constexpr size_t kBlockBytes = size_t{1} << 22;  // a multiple of every element's size
constexpr const char* kRemedy = "expected a whole safetensors file; fetch or export it again";

// Bytes of an element by the format's type names; 0 for an unknown one.
uint64_t width_of(const std::string& dtype) {
  static const std::unordered_map<std::string, uint64_t> kWidths = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"I64", 8},     {"U64", 8}, {"F64", 8}};
  const auto found = kWidths.find(dtype);
  return found == kWidths.end() ? 0 : found->second;
}

float float_from_f16(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, mantissa = half & 1023u;
  if (exponent == 0) return std::ldexp(static_cast<float>(mantissa), -24) * (sign ? -1.0F : 1.0F);
  const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

uint32_t crc_of(uint32_t before, const void* data, size_t bytes) {
  return static_cast<uint32_t>(crc32_z(before, static_cast<const Bytef*>(data), bytes));
}

// A JSON object whose keys are unique, since parsers differ in which of two equal keys they keep.
Json parse_header(const std::string& text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    check_usage(depth <= kDeepestHeader, "{}: the header is nested {} deep; {}", path, depth, kRemedy);
    if (event == Json::parse_event_t::object_start) keys.resize(static_cast<size_t>(depth) + 1);
    if (event == Json::parse_event_t::object_start) keys.back().clear();
    if (event == Json::parse_event_t::key && !keys[static_cast<size_t>(depth) - 1].insert(value).second) twice = value;
    return true;
  };
  try {
    Json header = Json::parse(text, watch);
    check_usage(header.is_object(), "{}: the header is {}, not a JSON object; {}", path, header.type_name(), kRemedy);
    check_usage(twice.empty(), "{}: the header names {} twice; {}", path, Json(twice).dump(), kRemedy);
    return header;
  } catch (const Json::exception& error) {
    fail_usage("{}: the header is not JSON: {}; {}", path, error.what(), kRemedy);
  }
}

Shape shape_of(const Json& extents, const std::string& where) {
  check_usage(extents.is_array() && extents.size() <= kMaxRank, "{}: its shape is {}; expected at most {} extents",
              where, extents.dump().substr(0, 60), kMaxRank);
  constexpr int64_t kLargest = int64_t{1} << 48;
  const std::array<Shape, kMaxRank + 1> ranks = {Shape{},        Shape{0},          Shape{0, 0},
                                                 Shape{0, 0, 0}, Shape{0, 0, 0, 0}, Shape{0, 0, 0, 0, 0}};
  Shape shape = ranks[extents.size()];
  int64_t elements = 1;
  for (size_t i = 0; i < extents.size(); ++i) {
    const bool whole = extents[i].is_number_unsigned() && extents[i].get<uint64_t>() <= uint64_t{kLargest};
    check_usage(whole, "{}: its shape is {}; expected whole numbers", where, extents.dump().substr(0, 60));
    shape[static_cast<int>(i)] = extents[i].get<int64_t>();
    const bool small = !__builtin_mul_overflow(elements, extents[i].get<int64_t>(), &elements) && elements <= kLargest;
    check_usage(small, "{}: its shape {} is too large to be true; {}", where, extents.dump().substr(0, 60), kRemedy);
  }
  return shape;
}

std::vector<uint16_t> rounded(const std::vector<float>& values) {
  std::vector<uint16_t> out(values.size());
  std::transform(values.begin(), values.end(), out.begin(), bf16_from_float);
  return out;
}

std::string header_text(const std::vector<TensorSource>& tensors, DType dtype) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  uint64_t begin = 0;
  for (const TensorSource& tensor : tensors) {
    std::vector<int64_t> extents;
    for (int i = 0; i < tensor.shape.rank(); ++i) extents.push_back(tensor.shape[i]);
    const uint64_t end = begin + static_cast<uint64_t>(tensor.shape.elements()) * size_of(dtype);
    header[tensor.path] = {
        {"dtype", dtype == DType::bf16 ? "BF16" : "F32"}, {"shape", extents}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // values start at a multiple of 8 bytes
  return text;
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors, DType dtype) {
  check(dtype == DType::f32 || dtype == DType::bf16, "safetensors: writes f32 or bf16, asked for {}", name_of(dtype));
  const auto check_written = [&](const std::ofstream& file) {
    check(file.good(), "{}: cannot be written: {}; free space there or choose another directory", path,
          system_error_text());
  };
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  const std::string header = header_text(tensors, dtype);
  const uint64_t length = header.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof length).write(header.data(), std::ssize(header));
  check_written(file);
  std::vector<uint32_t> checksums;
  std::vector<float> values;
  for (const TensorSource& tensor : tensors) {
    values.resize(static_cast<size_t>(tensor.shape.elements()));
    tensor.fill(values.data());
    const std::vector<uint16_t> half = dtype == DType::bf16 ? rounded(values) : std::vector<uint16_t>();
    const void* data = dtype == DType::bf16 ? static_cast<const void*>(half.data()) : values.data();
    const size_t bytes = values.size() * size_of(dtype);
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    check_written(file);
    checksums.push_back(crc_of(0, data, bytes));
  }
  file.close();
  check_written(file);
  sync_to_disk(path);
  const SafetensorsReader written(path);
  for (size_t i = 0; i < tensors.size(); ++i) {
    check(written.shape(tensors[i].path) == tensors[i].shape && written.checksum(tensors[i].path) == checksums[i],
          "{}: {} reads back differently from what was written; check the disk", path, tensors[i].path);
  }
}

SafetensorsReader::SafetensorsReader(std::string path) : path_(std::move(path)) {
  check_usage(std::filesystem::is_regular_file(path_), "{}: there is no such file; {}", path_, kRemedy);
  read_header(std::filesystem::file_size(path_));
}

void SafetensorsReader::read_header(uint64_t file_size) {
  std::ifstream file(path_, std::ios::binary);
  uint64_t length = 0;
  check_usage(file_size >= sizeof length && file.read(reinterpret_cast<char*>(&length), sizeof length).good(),
              "{}: has {} bytes, too few for a header; {}", path_, file_size, kRemedy);
  const uint64_t limit = std::min(kLargestHeader, file_size - sizeof length);
  check_usage(length <= limit, "{}: its header claims {} bytes of at most {}; {}", path_, length, limit, kRemedy);
  std::string text(length, '\0');
  check_usage(length == 0 || file.read(text.data(), std::ssize(text)).good(), "{}: reading the header failed: {}",
              path_, system_error_text());
  data_begin_ = sizeof length + length;
  const Json header = parse_header(text, path_);
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    const std::string where = path_ + ": " + Json(name).dump();
    const Json offsets = value.is_object() ? value.value("data_offsets", Json()) : Json();
    const bool complete = value.is_object() && value.contains("dtype") && value["dtype"].is_string() &&
                          value.contains("shape") && offsets.is_array() && offsets.size() == 2 &&
                          offsets[0].is_number_unsigned() && offsets[1].is_number_unsigned();
    check_usage(complete, "{}: is described by {}; expected dtype, shape and data_offsets", where,
                value.dump().substr(0, 80));
    entries_[name] = {value["dtype"], shape_of(value["shape"], where), offsets[0], offsets[1]};
  }
  check_layout(file_size - data_begin_);
}

// In order of their offsets the tensors follow one another from the first byte to the last.
void SafetensorsReader::check_layout(uint64_t data_size) const {
  std::vector<std::pair<const std::string*, const Entry*>> order;
  for (const auto& [name, each] : entries_) order.emplace_back(&name, &each);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  uint64_t next = 0;
  for (const auto& [name, each] : order) {
    const uint64_t width = width_of(each->dtype);
    check_usage(width > 0, "{}: {} has the type {}; expected one of the format's types", path_, *name,
                Json(each->dtype).dump());
    check_usage(each->begin == next && each->end >= each->begin && each->end <= data_size,
                "{}: {} lies at bytes {} to {}; expected to start at {} and to end within the file's {}; {}", path_,
                *name, each->begin, each->end, next, data_size, kRemedy);
    check_usage(static_cast<uint64_t>(each->shape.elements()) * width == each->end - each->begin,
                "{}: {} {} of {} does not fill its {} bytes; {}", path_, *name, each->shape.text(), each->dtype,
                each->end - each->begin, kRemedy);
    next = each->end;
  }
  check_usage(next == data_size, "{}: {} bytes of values, the header describes {}; {}", path_, data_size, next,
              kRemedy);
}

std::vector<std::string> SafetensorsReader::names() const {
  std::vector<std::string> out;
  for (const auto& [name, unused] : entries_) out.push_back(name);
  return out;
}

const SafetensorsReader::Entry& SafetensorsReader::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  check_usage(found != entries_.end(), "{}: holds no tensor {}", path_, name);
  return found->second;
}

template <class Take>
void SafetensorsReader::for_blocks(const Entry& entry, Take&& take) const {
  errno = 0;
  std::ifstream file(path_, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(data_begin_ + entry.begin));
  std::vector<char> block;
  for (uint64_t left = entry.end - entry.begin; left > 0; left -= block.size()) {
    block.resize(std::min<uint64_t>(left, kBlockBytes));
    check_usage(file.read(block.data(), std::ssize(block)).good(), "{}: reading failed: {}; check the disk", path_,
                system_error_text());
    take(block);
  }
}

void SafetensorsReader::read(const std::string& name, float* target) const {
  const Entry& found = entry(name);
  if (found.dtype == "F32") {
    return for_blocks(found, [&](const std::vector<char>& block) {
      std::copy(block.begin(), block.end(), reinterpret_cast<char*>(target));
      target += block.size() / sizeof(float);
    });
  }
  const bool bf16 = found.dtype == "BF16";
  check_usage(bf16 || found.dtype == "F16", "{}: {} is of type {}; egmla reads F32, F16 and BF16", path_, name,
              found.dtype);
  for_blocks(found, [&](const std::vector<char>& block) {
    std::vector<uint16_t> half(block.size() / 2);
    std::copy(block.begin(), block.end(), reinterpret_cast<char*>(half.data()));
    target = std::transform(half.begin(), half.end(), target,
                            [&](uint16_t value) { return bf16 ? float_from_bf16(value) : float_from_f16(value); });
  });
}

uint32_t SafetensorsReader::checksum(const std::string& name) const {
  uint32_t sum = 0;
  for_blocks(entry(name), [&](const std::vector<char>& block) { sum = crc_of(sum, block.data(), block.size()); });
  return sum;
}

}  // namespace egmla
