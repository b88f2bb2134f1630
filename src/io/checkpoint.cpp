#include "io/checkpoint.h"

#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <tuple>

#include "io/files.h"
#include "io/seal.h"

namespace egmla {
namespace {

constexpr int64_t kFormat = 1;
// Shapes of every rank, to be filled.
const std::array<Shape, kMaxRank + 1> kShapeOfRank = {Shape{},        Shape{0},          Shape{0, 0},
                                                      Shape{0, 0, 0}, Shape{0, 0, 0, 0}, Shape{0, 0, 0, 0, 0}};
constexpr std::array<Group, 3> kGroups = {Group::model, Group::exp_avg, Group::exp_avg_sq};

std::string name_of(Group group) {
  switch (group) {
    case Group::model:
      return "/model";
    case Group::exp_avg:
      return "/optimizer/exp_avg";
    default:
      return "/optimizer/exp_avg_sq";
  }
}

std::string tensor_name(Group group, const std::string& path) {
  return name_of(group) + "/" + path;
}

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

uint32_t crc_of(const void* data, size_t bytes) {
  return static_cast<uint32_t>(crc32_z(0, static_cast<const Bytef*>(data), bytes));
}

uint32_t crc_of(const std::string& text) {
  return crc_of(text.data(), text.size());
}

// What the state's checksum covers.
std::string state_text(const CheckpointState& s) {
  return fmt::format("step={} tokens={} samples={} seed={} skipped_steps={}", s.step, s.tokens, s.samples, s.seed,
                     s.skipped_steps);
}

// A tensor's line in the manifest, whose checksum pins names, shapes and checksums to each other.
std::string manifest_line(const std::string& name, const Shape& shape, uint32_t checksum) {
  return fmt::format("{} {} {:08x}\n", name, shape.text(), checksum);
}

// HDF5 reports through an error stack; its innermost entry holds the cause, and for a failed system call the error's
// text in quotes.
std::string hdf5_reason() {
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

hid_t string_type() {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

// --- writing ---

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
    const hid_t file = H5Fcreate(temporary_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, properties);
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
    return H5Gcreate2(file_, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
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
    const hid_t id =
        H5Dcreate2(parent, tensor.path.c_str(), H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
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

// --- reading ---

struct CheckpointReader::File {
  explicit File(const std::string& path) : access(path, Access::Direction::read), id(open(), H5Fclose) {}

  hid_t open() const {
    if (!std::filesystem::is_regular_file(access.path())) access.refuse("there is no such file");
    if (check_seal(access.path()) == SealState::broken) {
      access.refuse("bytes outside the tensors differ from what was written");
    }
    const Handle properties(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    H5Pset_file_locking(properties, false, true);  // a finished checkpoint never changes
    return access.valid(H5Fopen(access.path().c_str(), H5F_ACC_RDONLY, properties), "opening it");
  }

  Handle open_attribute(hid_t owner, const std::string& name) const {
    const hid_t attribute = access.valid(H5Aopen(owner, name.c_str(), H5P_DEFAULT), "attribute " + name);
    const Handle space(H5Aget_space(attribute), H5Sclose);
    if (H5Sget_simple_extent_npoints(space) != 1) {
      H5Aclose(attribute);
      access.refuse("attribute " + name + " does not hold one value");
    }
    return {attribute, H5Aclose};
  }

  template <class T>
  T number(hid_t owner, const std::string& name, hid_t memory_type) const {
    const Handle attribute = open_attribute(owner, name);
    T value{};
    access.done(H5Aread(attribute, memory_type, &value), "attribute " + name);
    return value;
  }

  uint32_t checksum(hid_t owner, const std::string& name) const {
    return number<uint32_t>(owner, name, H5T_NATIVE_UINT32);
  }

  std::string text(const std::string& name) const {
    const Handle attribute = open_attribute(id, name);
    const Handle stored(H5Aget_type(attribute), H5Tclose);
    if (H5Tis_variable_str(stored) <= 0) access.refuse("attribute " + name + " is no variable-length string");
    const Handle type(string_type(), H5Tclose);
    char* value = nullptr;
    access.done(H5Aread(attribute, type, &value), "attribute " + name);
    const std::string out = value ? value : "";
    H5free_memory(value);
    expect(crc_of(out), checksum(id, name + "_crc32"), "attribute " + name);
    return out;
  }

  void expect(uint32_t found, uint32_t stored, const std::string& what) const {
    if (found != stored) access.refuse(fmt::format("{} has checksum {:08x}, recorded is {:08x}", what, found, stored));
  }

  Shape shape_of(hid_t dataset, const std::string& name) const {
    const Handle type(H5Dget_type(dataset), H5Tclose);
    const Handle space(H5Dget_space(dataset), H5Sclose);
    const int rank = H5Sget_simple_extent_ndims(space);
    if (H5Tequal(type, H5T_IEEE_F32LE) <= 0) access.refuse("tensor " + name + " is not float32");
    if (rank < 0 || rank > kMaxRank) access.refuse(fmt::format("tensor {} has rank {}", name, rank));
    std::array<hsize_t, H5S_MAX_RANK> extents{};
    access.done(H5Sget_simple_extent_dims(space, extents.data(), nullptr), "tensor " + name);
    Shape shape = kShapeOfRank[static_cast<size_t>(rank)];
    for (int i = 0; i < rank; ++i) shape[i] = static_cast<int64_t>(extents[static_cast<size_t>(i)]);
    return shape;
  }

  std::vector<std::string> names_in(hid_t group, const std::string& name) const {
    std::vector<std::string> names;
    const auto collect = [](hid_t, const char* link, const H5L_info_t*, void* out) -> herr_t {
      static_cast<std::vector<std::string>*>(out)->emplace_back(link);
      return 0;
    };
    access.done(H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names), "group " + name);
    return names;
  }

  Access access;
  Handle id;
};

CheckpointReader::CheckpointReader(const std::string& path) : file_(std::make_unique<File>(path)) {
  const auto format = file_->number<int64_t>(file_->id, "format", H5T_NATIVE_INT64);
  if (format != kFormat) {
    file_->access.refuse(fmt::format("format is {}, this program reads {}", format, kFormat));
  }
  read_texts();
  read_state();
  read_index();
}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;
CheckpointReader& CheckpointReader::operator=(CheckpointReader&&) noexcept = default;

void CheckpointReader::read_texts() {
  config_yaml_ = file_->text("config");
  if (H5Aexists(file_->id, "tokenizer") > 0) tokenizer_json_ = file_->text("tokenizer");
}

void CheckpointReader::read_state() {
  const Handle group(file_->access.valid(H5Gopen2(file_->id, "/state", H5P_DEFAULT), "group /state"), H5Gclose);
  const auto get = [&](const char* name) { return file_->number<int64_t>(group, name, H5T_NATIVE_INT64); };
  state_ = {.step = get("step"),
            .tokens = get("tokens"),
            .samples = get("samples"),
            .seed = file_->number<uint64_t>(group, "seed", H5T_NATIVE_UINT64),
            .skipped_steps = get("skipped_steps")};
  file_->expect(crc_of(state_text(state_)), file_->checksum(group, "crc32"), "group /state");
}

void CheckpointReader::read_index() {
  std::vector<std::string> lines;
  for (Group group : kGroups) {
    const std::string parent_name = name_of(group);
    const hid_t id = H5Gopen2(file_->id, parent_name.c_str(), H5P_DEFAULT);
    const Handle parent(file_->access.valid(id, "group " + parent_name), H5Gclose);
    for (const std::string& path : file_->names_in(parent, parent_name)) {
      const std::string name = tensor_name(group, path);
      const hid_t dataset_id = H5Dopen2(parent, path.c_str(), H5P_DEFAULT);
      const Handle dataset(file_->access.valid(dataset_id, "tensor " + name), H5Dclose);
      const Entry found{file_->shape_of(dataset, name), file_->checksum(dataset, "crc32")};
      index_[{group, path}] = found;
      lines.push_back(manifest_line(name, found.shape, found.checksum));
    }
  }
  std::sort(lines.begin(), lines.end());
  std::string manifest;
  for (const std::string& line : lines) manifest += line;
  file_->expect(crc_of(manifest), file_->checksum(file_->id, "manifest_crc32"), "the list of tensors");
}

const CheckpointReader::Entry& CheckpointReader::entry(Group group, const std::string& path) const {
  const auto found = index_.find({group, path});
  if (found == index_.end()) file_->access.refuse("it has no tensor " + tensor_name(group, path));
  return found->second;
}

std::vector<std::string> CheckpointReader::paths(Group group) const {
  std::vector<std::string> out;
  for (const auto& [key, unused] : index_) {
    if (key.first == group) out.push_back(key.second);
  }
  return out;
}

bool CheckpointReader::has(Group group, const std::string& path) const {
  return index_.contains({group, path});
}

Shape CheckpointReader::shape(Group group, const std::string& path) const {
  return entry(group, path).shape;
}

void CheckpointReader::read(Group group, const std::string& path, float* target) const {
  const Entry& expected = entry(group, path);
  const std::string name = tensor_name(group, path);
  const hid_t id = H5Dopen2(file_->id, name.c_str(), H5P_DEFAULT);
  const Handle dataset(file_->access.valid(id, "tensor " + name), H5Dclose);
  const herr_t status = H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, target);
  file_->access.done(status, "tensor " + name);
  const auto bytes = static_cast<size_t>(expected.shape.elements()) * sizeof(float);
  file_->expect(crc_of(target, bytes), expected.checksum, "tensor " + name);
}

void CheckpointReader::verify() const {
  std::vector<float> buffer;
  for (const auto& [key, expected] : index_) {
    buffer.resize(std::max(buffer.size(), static_cast<size_t>(expected.shape.elements())));
    read(key.first, key.second, buffer.data());
  }
}

}  // namespace egmla
