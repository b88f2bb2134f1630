// A seal: a trailer with the CRC-32 of all bytes of a file outside given spans (which carry checksums of their own).
// HDF5 1.10 can crash on damaged structures, so that a checkpoint's are checked before the library sees them.
// Trailer, 64-bit little-endian: {begin, size} of each span, number of spans, CRC-32, "EGMLSEAL".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace egmla {

struct FileSpan {
  uint64_t begin = 0;
  uint64_t size = 0;

  auto operator<=>(const FileSpan&) const = default;
};

// Appends the seal; the spans may come in any order but must not overlap.
void append_seal(const std::string& path, std::vector<FileSpan> exempt);

enum class SealState : uint8_t { intact, broken, absent };

// Absent: no trailer, as in a file rewritten by another program, or a truncated one.
SealState check_seal(const std::string& path);

}  // namespace egmla
