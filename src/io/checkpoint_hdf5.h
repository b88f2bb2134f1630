// What the checkpoint's writer and reader share: names, checksums, and HDF5 identifiers that close themselves.
#pragma once

#include <hdf5.h>
#include <zlib.h>

#include <array>
#include <string>
#include <utility>

#include "io/checkpoint.h"

namespace egmla::hdf5 {

constexpr int64_t kFormat = 1;
// Shapes of every rank, to be filled.
inline const std::array<Shape, kMaxRank + 1> kShapeOfRank = {Shape{},        Shape{0},          Shape{0, 0},
                                                             Shape{0, 0, 0}, Shape{0, 0, 0, 0}, Shape{0, 0, 0, 0, 0}};
constexpr std::array<Group, 3> kGroups = {Group::model, Group::exp_avg, Group::exp_avg_sq};

inline std::string name_of(Group group) {
  switch (group) {
    case Group::model:
      return "/model";
    case Group::exp_avg:
      return "/optimizer/exp_avg";
    default:
      return "/optimizer/exp_avg_sq";
  }
}

inline std::string tensor_name(Group group, const std::string& path) {
  return name_of(group) + "/" + path;
}

inline uint32_t crc_of(const void* data, size_t bytes) {
  return static_cast<uint32_t>(crc32_z(0, static_cast<const Bytef*>(data), bytes));
}

inline uint32_t crc_of(const std::string& text) {
  return crc_of(text.data(), text.size());
}

// Attribute of /state: a batch that is left out.
inline std::string skipped_batch(int64_t i) {
  return fmt::format("skipped_batch_{}", i);
}

// What the state's checksum covers.
inline std::string state_text(const CheckpointState& s) {
  std::string text = fmt::format("step={} tokens={} samples={} seed={} skipped_steps={}", s.step, s.tokens, s.samples,
                                 s.seed, s.skipped_steps);
  for (int64_t i = 0; i < s.rollbacks; ++i)
    text += fmt::format(" {}={}", skipped_batch(i), s.skipped_batches[static_cast<size_t>(i)]);
  return text;
}

// A tensor's line in the manifest, whose checksum pins names, shapes and checksums to each other.
inline std::string manifest_line(const std::string& name, const Shape& shape, uint32_t checksum) {
  return fmt::format("{} {} {:08x}\n", name, shape.text(), checksum);
}

// HDF5 reports through an error stack; its innermost entry holds the cause, and for a failed system call the error's
// text in quotes.
inline std::string hdf5_reason() {
  std::string reason = "HDF5 gives no reason";
  const auto keep = [](unsigned depth, const H5E_error2_t* error, void* out) -> herr_t {
    if (depth == 0 && error->desc) *static_cast<std::string*>(out) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep, &reason);
  const std::string marker = "error message = '";
  const size_t begin = reason.find(marker);
  if (begin == std::string::npos) return reason;
  const size_t start = begin + marker.size();
  return reason.substr(start, reason.find('\'', start) - start);
}

// A path and a direction: how a failed HDF5 call becomes our error.
class Access {
 public:
  enum class Direction : uint8_t { read, write };

  Access(std::string path, Direction direction) : path_(std::move(path)), direction_(direction) {
    H5dont_atexit();                              // see ~Writer; counts only before the first other call
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // failures are reported by us, not printed by the library
  }

  [[noreturn]] void refuse(const std::string& what) const {
    if (direction_ == Direction::write) {
      fail("{}: checkpoint not written: {}; free space there or choose another directory, then start again", path_,
           what);
    }
    fail_usage(
        "{}: unreadable checkpoint: {}; expected an egmla HDF5 checkpoint; choose another one, or delete it to fall "
        "back on the one before",
        path_, what);
  }

  hid_t valid(hid_t id, const std::string& what) const {
    if (id < 0) refuse(what + ": " + hdf5_reason());
    return id;
  }

  void done(herr_t status, const std::string& what) const {
    if (status < 0) refuse(what + ": " + hdf5_reason());
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Direction direction_;
};

// Owns one HDF5 identifier.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle(hid_t id, Close closer) : id_(id), close_(closer) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }

  operator hid_t() const { return id_; }  // NOLINT: HDF5's calls take the bare identifier
  hid_t abandon() { return std::exchange(id_, H5I_INVALID_HID); }

 private:
  hid_t id_;
  Close close_;
};

inline hid_t string_type() {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

}  // namespace egmla::hdf5
