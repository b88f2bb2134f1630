#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "core/files.h"
#include "io/checkpoint_hdf5.h"
#include "io/seal.h"

namespace egmla {

using namespace hdf5;

namespace {

const std::vector<TensorSource>& tensors_of(const CheckpointContents& contents, Group group) {
  switch (group) {
    case Group::model:
      return contents.model;
    case Group::exp_avg:
      return contents.exp_avg;
    default:
      return contents.exp_avg_sq;
  }
}

// Without the time of day, so that equal contents are equal bytes.
Handle timeless(hid_t kind) {
  const hid_t properties = H5Pcreate(kind);
  H5Pset_obj_track_times(properties, false);
  return {properties, H5Pclose};
}

class Writer {
 public:
  // `temporary` is written; messages name the final path.
  Writer(const std::string& path, const std::string& temporary)
      : access_(path, Access::Direction::write), temporary_(temporary), file_(create(), H5Fclose) {}

  // HDF5 1.10 crashes when it closes a file it cannot write, now or at the process's end. After a failure the
  // identifier is therefore abandoned, and only the disk space is given back.
  ~Writer() {
    if (file_.abandon() >= 0) std::ignore = ::truncate(temporary_.c_str(), 0);
  }

  void write(const CheckpointContents& contents) {
    reserve(contents);
    set_attribute(file_, "format", H5T_STD_I64LE, H5T_NATIVE_INT64, kFormat);
    write_text("config", contents.config_yaml);
    if (!contents.tokenizer_json.empty()) write_text("tokenizer", contents.tokenizer_json);
    write_state(contents.state);
    const Handle optimizer(access_.valid(make_group("/optimizer"), "/optimizer"), H5Gclose);
    for (Group group : kGroups) write_group(group, tensors_of(contents, group));
    std::string manifest;
    std::sort(manifest_.begin(), manifest_.end());
    for (const std::string& line : manifest_) manifest += line;
    set_checksum(file_, "manifest_crc32", crc_of(manifest));
  }

  // Where the tensors lie in the file; their checksums guard those bytes, the seal all others.
  const std::vector<FileSpan>& tensor_spans() const { return spans_; }
  void close() {
    access_.done(H5Fflush(file_, H5F_SCOPE_GLOBAL), "flushing the file");
    access_.done(H5Fclose(file_.abandon()), "closing the file");
  }

 private:
  hid_t create() const {
    const Handle properties(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    // The 1.10 format: its metadata blocks carry checksums of their own.
    H5Pset_libver_bounds(properties, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_file_locking(properties, false, true);  // the temporary name is ours alone; some file systems lack locks
    const hid_t file = H5Fcreate(temporary_.c_str(), H5F_ACC_TRUNC, timeless(H5P_FILE_CREATE), properties);
    return access_.valid(file, "creating the file");
  }

  // Takes the disk space now, so that a full disk shows before the long write and HDF5 never meets it midway.
  void reserve(const CheckpointContents& contents) const {
    int64_t bytes = 1 << 20;
    bytes += static_cast<int64_t>(contents.config_yaml.size() + contents.tokenizer_json.size());
    for (Group group : kGroups) {
      for (const TensorSource& tensor : tensors_of(contents, group)) bytes += 4 * tensor.shape.elements() + 2048;
    }
    const int fd = ::open(temporary_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) access_.refuse("reopening the file: " + system_error_text());
    const int status = ::fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, bytes);
    const int error = errno;
    ::close(fd);
    errno = error;
    if (status != 0 && error != EOPNOTSUPP && error != ENOSYS) {
      access_.refuse(fmt::format("reserving {} bytes: {}", bytes, system_error_text()));
    }
  }

  hid_t make_group(const std::string& name) const {
    return H5Gcreate2(file_, name.c_str(), H5P_DEFAULT, timeless(H5P_GROUP_CREATE), H5P_DEFAULT);
  }

  template <class T>
  void set_attribute(hid_t owner, const std::string& name, hid_t file_type, hid_t memory_type, const T& value) {
    const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
    const hid_t id = H5Acreate2(owner, name.c_str(), file_type, space, H5P_DEFAULT, H5P_DEFAULT);
    const Handle attribute(access_.valid(id, name), H5Aclose);
    access_.done(H5Awrite(attribute, memory_type, &value), name);
  }

  void set_checksum(hid_t owner, const std::string& name, uint32_t value) {
    set_attribute(owner, name, H5T_STD_U32LE, H5T_NATIVE_UINT32, value);
  }

  void write_text(const std::string& name, const std::string& text) {
    const Handle type(string_type(), H5Tclose);
    set_attribute(file_, name, type, type, text.c_str());
    set_checksum(file_, name + "_crc32", crc_of(text));
  }

  void write_state(const CheckpointState& state) {
    const Handle group(access_.valid(make_group("/state"), "/state"), H5Gclose);
    const auto set = [&](const char* name, int64_t value) {
      set_attribute(group, name, H5T_STD_I64LE, H5T_NATIVE_INT64, value);
    };
    set("step", state.step);
    set("tokens", state.tokens);
    set("samples", state.samples);
    set("skipped_steps", state.skipped_steps);
    for (int64_t i = 0; i < state.rollbacks; ++i)
      set(skipped_batch(i).c_str(), state.skipped_batches[static_cast<size_t>(i)]);
    set_attribute(group, "seed", H5T_STD_U64LE, H5T_NATIVE_UINT64, state.seed);
    set_checksum(group, "crc32", crc_of(state_text(state)));
  }

  void write_group(Group group, const std::vector<TensorSource>& tensors) {
    const Handle parent(access_.valid(make_group(name_of(group)), name_of(group)), H5Gclose);
    for (const TensorSource& tensor : tensors) {
      const auto elements = static_cast<size_t>(tensor.shape.elements());
      buffer_.resize(std::max(buffer_.size(), elements));
      tensor.fill(buffer_.data());
      const std::string name = tensor_name(group, tensor.path);
      const uint32_t checksum = crc_of(buffer_.data(), elements * sizeof(float));
      write_tensor(parent, tensor, name, checksum);
      manifest_.push_back(manifest_line(name, tensor.shape, checksum));
    }
  }

  void write_tensor(hid_t parent, const TensorSource& tensor, const std::string& name, uint32_t checksum) {
    std::array<hsize_t, kMaxRank> extents{};
    const int rank = tensor.shape.rank();
    for (int i = 0; i < rank; ++i) extents[static_cast<size_t>(i)] = static_cast<hsize_t>(tensor.shape[i]);
    const Handle space(rank ? H5Screate_simple(rank, extents.data(), nullptr) : H5Screate(H5S_SCALAR), H5Sclose);
    const Handle creation = timeless(H5P_DATASET_CREATE);
    const hid_t id = H5Dcreate2(parent, tensor.path.c_str(), H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    const Handle dataset(access_.valid(id, name), H5Dclose);
    access_.done(H5Dwrite(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer_.data()), name);
    set_checksum(dataset, "crc32", checksum);
    const hsize_t bytes = H5Dget_storage_size(dataset);
    if (bytes > 0) spans_.push_back({H5Dget_offset(dataset), bytes});
  }

  Access access_;
  std::string temporary_;
  Handle file_;
  std::vector<float> buffer_;
  std::vector<std::string> manifest_;
  std::vector<FileSpan> spans_;
};

}  // namespace

void write_checkpoint(const std::string& path, const CheckpointContents& contents) {
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (!directory.empty()) std::filesystem::create_directories(directory, error);
  check(!error, "{}: checkpoint not written: creating {} failed: {}; choose another directory", path,
        directory.string(), error.message());
  remove_leftovers(directory.string());
  PendingFile pending(path);
  Writer writer(path, pending.path());
  writer.write(contents);
  writer.close();
  append_seal(pending.path(), writer.tensor_spans());
  std::filesystem::resize_file(pending.path(), std::filesystem::file_size(pending.path()));  // frees unused reservation
  sync_to_disk(pending.path());
  try {
    CheckpointReader(pending.path()).verify();
  } catch (const Error& damage) {
    fail("{}: checkpoint not written: reading it back failed: {}", path, damage.what());
  }
  pending.commit();
}

}  // namespace egmla
