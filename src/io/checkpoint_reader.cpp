#include <algorithm>
#include <filesystem>
#include <tuple>

#include "core/files.h"
#include "io/checkpoint_hdf5.h"
#include "io/seal.h"

namespace egmla {

using namespace hdf5;

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
  int64_t& rollbacks = state_.rollbacks;
  for (; rollbacks < kMostRollbacks && H5Aexists(group, skipped_batch(rollbacks).c_str()) > 0; ++rollbacks)
    state_.skipped_batches[static_cast<size_t>(rollbacks)] = get(skipped_batch(rollbacks).c_str());
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
