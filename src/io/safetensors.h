// Safetensors files: 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the values,
// little-endian and without gaps. Reading trusts nothing: a file that is not exactly that is refused with one line.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/shape.h"
#include "io/checkpoint.h"

namespace egmla {

// Writes f32 or bf16 (rounded to nearest even), flushes, then reads the file back and compares every tensor's checksum.
void write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors, DType dtype);

class SafetensorsReader {
 public:
  explicit SafetensorsReader(std::string path);

  std::vector<std::string> names() const;  // sorted
  bool has(const std::string& name) const { return entries_.contains(name); }
  Shape shape(const std::string& name) const { return entry(name).shape; }
  // Copies an F32, F16 or BF16 tensor to `target` as floats; other types are refused.
  void read(const std::string& name, float* target) const;
  // CRC-32 of the tensor's bytes as they are stored.
  uint32_t checksum(const std::string& name) const;

 private:
  struct Entry {
    std::string dtype;
    Shape shape;
    uint64_t begin = 0, end = 0;  // bytes behind the header
  };
  const Entry& entry(const std::string& name) const;
  void read_header(uint64_t file_size);
  void check_layout(uint64_t data_size) const;
  // Hands the tensor's bytes to `take` in blocks of whole elements.
  template <class Take>
  void for_blocks(const Entry& entry, Take&& take) const;

  std::string path_;
  uint64_t data_begin_ = 0;
  std::map<std::string, Entry> entries_;
};

}  // namespace egmla
