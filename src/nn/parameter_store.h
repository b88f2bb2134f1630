// All parameters of a model in flat buffers: master values and gradients in f32 (f64 in tests), and on CUDA a bf16
// working copy that AdamW keeps current. Declared first (no memory: `inspect` stops there), then allocated.
// A parameter may be several named tensors stacked by rows (q, k, v in one product); names are Hugging Face's.
// Of several processes each may update a part of the buffers alone: then a bf16 model keeps that part of the master.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "autograd/parameter.h"
#include "core/tensor.h"

namespace egmla {

// How the optimizer treats a parameter; each group is one contiguous span of the buffers.
enum class ParameterGroup : uint8_t { matrix, vector, gate_table };
constexpr int kParameterGroups = 3;

// Initial values: constant + N(0, std).
struct Init {
  double std = 0;
  double constant = 0;
};

// A named tensor, as checkpoints and exports know it: [rows, columns], or [rows] when columns is 0.
struct NamedTensor {
  std::string path;
  int64_t rows = 0;
  int64_t columns = 0;
  Init init{};
  ParameterGroup group = ParameterGroup::matrix;
  int64_t offset = 0;  // in elements of the flat buffers, set by allocate()

  Shape shape() const { return columns ? Shape{rows, columns} : Shape{rows}; }
  int64_t elements() const { return rows * (columns ? columns : 1); }
};

// Elements [begin, begin + size) of the flat buffers.
struct Span {
  int64_t begin = 0;
  int64_t size = 0;
};

// A piece of the flat buffers that this process updates, within one group; `at` is its place among all its pieces,
// which lie side by side in the optimizer's buffers.
struct OwnPart {
  Span span;
  ParameterGroup group = ParameterGroup::matrix;
  int64_t at = 0;
};

// A parameter, or the windows it is trained through, and its place in the flat buffers, padding included.
struct PlacedParameter {
  Span span;
  ParameterGroup group = ParameterGroup::matrix;
  std::vector<Parameter*> trained;
};

class ParameterStore {
 public:
  ParameterStore() = default;
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  // Declares a parameter of tensors stacked along axis 0. All have the same columns and group. The pointer stays valid.
  Parameter* add(std::vector<NamedTensor> parts);
  // A strided window of a declared parameter that is trained through the windows alone; together they cover it.
  Parameter* window(Parameter* whole, std::function<View(const View&)> select);
  // The parameter whose first tensor has this path, or null.
  Parameter* find(const std::string& path);

  const std::vector<NamedTensor>& tensors() const { return tensors_; }
  int64_t elements(ParameterGroup group) const;  // without padding
  int64_t elements() const;

  // Every parameter's place in the flat buffers, in order of declaration; known before anything is allocated.
  std::vector<PlacedParameter> places();
  // Takes memory; `compute` is the dtype ops read (f32, f64 or bf16). `own` is what this process updates, everything
  // where it is empty.
  void allocate(Context& context, DType compute, std::vector<OwnPart> own = {});
  bool allocated() const { return master_.defined() || working_.defined(); }
  // Draws every tensor from (seed, its path): independent of order, layout and world size.
  void initialize(uint64_t seed);

  // Reads and writes one tensor of image(), row-major; `data` holds elements() values.
  void read(const NamedTensor& tensor, float* data) const;
  void write(const NamedTensor& tensor, const float* data);
  // Takes over image() after write(): rounds it into the working copy, and keeps what this process updates.
  void refresh_working();

  // For inference: gives back the gradients, and the master copy where ops read a working copy. No training, reading
  // or writing after it.
  void drop_training_copies();

  // A step begins: gradients are overwritten by their first writer. It ends: what nothing wrote is zero.
  void begin_step();
  void end_step();

  Context& context() const { return (working_.defined() ? working_ : master_).context(); }
  const Tensor& master() const { return master_; }
  const Tensor& grad() const { return grad_; }
  const Tensor& working() const { return working_; }  // undefined when ops read the master copy
  const std::vector<OwnPart>& own() const { return own_; }
  int64_t own_elements() const { return own_elements_; }
  // Whether other processes update the rest.
  bool shared_out() const { return shared_out_; }
  bool keeps_whole_master() const { return !(shared_out_ && working_.defined()); }
  // The whole master copy: the buffer itself, or where this process keeps only a part of it, the memory of the
  // gradients on loan between steps.
  const Tensor& image() const { return keeps_whole_master() ? master_ : grad_; }
  // A part of the master copy.
  View master_part(const OwnPart& part) const;
  // Copies this process's parts from a whole buffer to one of own_elements(), and back; converts where their types
  // differ.
  void keep_own(const Tensor& whole, const Tensor& own) const;
  void spread_own(const Tensor& own, const Tensor& whole) const;
  // A window of a flat buffer of the master's layout.
  View slice(const Tensor& flat, const Span& span) const;

 private:
  struct Entry {
    Parameter parameter;
    Span span;  // set by lay_out()
    size_t first_tensor = 0, tensor_count = 0;
    Entry* whole = nullptr;  // of a window
    std::function<View(const View&)> select;
    bool windowed = false;  // a whole that is trained through its windows
  };
  void lay_out();
  void place(Entry& entry);
  void move(const View& from, const View& to) const;

  std::deque<Entry> entries_;
  std::vector<NamedTensor> tensors_;
  int64_t elements_ = 0;  // of a flat buffer, padding included; 0 until laid out
  std::vector<OwnPart> own_;
  int64_t own_elements_ = 0;
  bool shared_out_ = false;
  Tensor master_, grad_, working_;
};

}  // namespace egmla
