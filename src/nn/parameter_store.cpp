#include "nn/parameter_store.h"

#include <algorithm>
#include <map>

#include "core/rng.h"
#include "kernels/elementwise.h"

namespace egmla {
namespace {

// Parameters start at multiples of 256 bytes (f32), so that every kernel may load vectors.
constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t elements) {
  return (elements + kAlignment - 1) / kAlignment * kAlignment;
}

View at(const Tensor& flat, int64_t offset, const Shape& shape) {
  return make_view(static_cast<char*>(flat.view().data) + static_cast<size_t>(offset) * size_of(flat.dtype()), shape,
                   flat.dtype());
}

// Of parts in rising order, those that touch and belong to one group become one.
void merge_neighbours(std::vector<OwnPart>& parts) {
  std::sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.span.begin < b.span.begin; });
  std::vector<OwnPart> merged;
  for (const OwnPart& part : parts) {
    if (merged.empty() || merged.back().group != part.group) {
      merged.push_back(part);
    } else {
      merged.back().span.size += part.span.size;
    }
  }
  parts = std::move(merged);
}

}  // namespace

Parameter* ParameterStore::add(std::vector<NamedTensor> parts) {
  check(!allocated() && !parts.empty(), "parameters: declare before allocating");
  Entry entry;
  entry.parameter.name = parts.front().path;
  entry.parameter.ordinal = static_cast<int32_t>(entries_.size());
  entry.first_tensor = tensors_.size();
  entry.tensor_count = parts.size();
  for (NamedTensor& part : parts) {
    check(part.columns == parts.front().columns && part.group == parts.front().group,
          "parameters: {} cannot be stacked with {}", part.path, parts.front().path);
    tensors_.push_back(std::move(part));
  }
  entries_.push_back(std::move(entry));
  return &entries_.back().parameter;
}

Parameter* ParameterStore::window(Parameter* whole, std::function<View(const View&)> select) {
  const auto owner =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return &e.parameter == whole; });
  check(owner != entries_.end(), "parameters: {} was not declared here", whole->name);
  owner->windowed = true;
  Entry entry;
  entry.parameter.name = whole->name;
  entry.parameter.ordinal = static_cast<int32_t>(entries_.size());
  entry.whole = &*owner;
  entry.select = std::move(select);
  entries_.push_back(std::move(entry));
  return &entries_.back().parameter;
}

Parameter* ParameterStore::find(const std::string& path) {
  for (Entry& entry : entries_) {
    if (!entry.whole && entry.parameter.name == path) return &entry.parameter;
  }
  return nullptr;
}

int64_t ParameterStore::elements(ParameterGroup group) const {
  int64_t sum = 0;
  for (const NamedTensor& tensor : tensors_) sum += tensor.group == group ? tensor.elements() : 0;
  return sum;
}

int64_t ParameterStore::elements() const {
  int64_t sum = 0;
  for (const NamedTensor& tensor : tensors_) sum += tensor.elements();
  return sum;
}

void ParameterStore::lay_out() {
  if (elements_ > 0) return;
  for (int group = 0; group < kParameterGroups; ++group) {
    for (Entry& entry : entries_) {
      if (entry.whole || tensors_[entry.first_tensor].group != static_cast<ParameterGroup>(group)) continue;
      entry.span.begin = elements_;
      for (size_t i = 0; i < entry.tensor_count; ++i) {
        tensors_[entry.first_tensor + i].offset = elements_;
        elements_ += tensors_[entry.first_tensor + i].elements();
      }
      elements_ = aligned(elements_);
      entry.span.size = elements_ - entry.span.begin;
    }
  }
}

std::vector<PlacedParameter> ParameterStore::places() {
  lay_out();
  std::vector<PlacedParameter> out;
  std::map<const Entry*, size_t> place_of;
  for (Entry& entry : entries_) {
    if (!entry.whole) {
      place_of[&entry] = out.size();
      out.push_back({entry.span, tensors_[entry.first_tensor].group, {}});
    }
    if (!entry.windowed) out[place_of.at(entry.whole ? entry.whole : &entry)].trained.push_back(&entry.parameter);
  }
  return out;
}

void ParameterStore::allocate(Context& context, DType compute, std::vector<OwnPart> own) {
  lay_out();
  own_ = std::move(own);
  shared_out_ = !own_.empty();
  if (!shared_out_) {
    for (const PlacedParameter& place : places()) own_.push_back({place.span, place.group, place.span.begin});
    merge_neighbours(own_);
  }
  own_elements_ = 0;
  for (const OwnPart& part : own_) own_elements_ += part.span.size;
  const DType master = compute == DType::f64 ? DType::f64 : DType::f32;
  {
    const MemoryScope scope(context, MemoryCategory::weights);
    if (compute == DType::bf16) working_ = Tensor::zeros(context, {elements_}, compute);
    master_ = Tensor::zeros(context, {keeps_whole_master() ? elements_ : own_elements_}, master);
  }
  {
    const MemoryScope scope(context, MemoryCategory::gradients);
    grad_ = Tensor::zeros(context, {elements_}, master);
  }
  for (Entry& entry : entries_) place(entry);
  for (const NamedTensor& tensor : tensors_) {
    if (keeps_whole_master()) context.name_memory(at(master_, tensor.offset, tensor.shape()), tensor.path);
    if (working_.defined()) context.name_memory(at(working_, tensor.offset, tensor.shape()), tensor.path);
    context.name_memory(at(grad_, tensor.offset, tensor.shape()), tensor.path + ".grad");
  }
}

void ParameterStore::place(Entry& entry) {
  if (entry.whole) {
    entry.parameter.value = entry.select(entry.whole->parameter.value);
    entry.parameter.grad = entry.select(entry.whole->parameter.grad);
    return;
  }
  const NamedTensor& first = tensors_[entry.first_tensor];
  int64_t rows = 0;
  for (size_t i = 0; i < entry.tensor_count; ++i) rows += tensors_[entry.first_tensor + i].rows;
  const Shape shape = first.columns ? Shape{rows, first.columns} : Shape{rows};
  entry.parameter.value = at(working_.defined() ? working_ : master_, first.offset, shape);
  entry.parameter.grad = at(grad_, first.offset, shape);
}

void ParameterStore::initialize(uint64_t seed) {
  std::vector<float> values;
  for (const NamedTensor& tensor : tensors_) {
    values.assign(static_cast<size_t>(tensor.elements()), static_cast<float>(tensor.init.constant));
    if (tensor.init.std > 0) {
      const uint64_t stream = stream_of(tensor.path);
#pragma omp parallel for
      for (size_t i = 0; i < values.size(); ++i)
        values[i] += static_cast<float>(tensor.init.std * normal(seed, static_cast<uint64_t>(i), stream));
    }
    write(tensor, values.data());
  }
  refresh_working();
}

void ParameterStore::read(const NamedTensor& tensor, float* data) const {
  const View from = at(image(), tensor.offset, tensor.shape());
  if (master_.dtype() == DType::f32) return context().copy_to_host(data, from.data, from.bytes());
  const double* values = from.as<double>();
  for (int64_t i = 0; i < tensor.elements(); ++i) data[i] = static_cast<float>(values[i]);
}

void ParameterStore::write(const NamedTensor& tensor, const float* data) {
  const View to = at(image(), tensor.offset, tensor.shape());
  if (master_.dtype() == DType::f32) return context().copy_from_host(to.data, data, to.bytes());
  double* values = to.as<double>();
  for (int64_t i = 0; i < tensor.elements(); ++i) values[i] = data[i];
}

void ParameterStore::refresh_working() {
  if (!working_.defined()) return;
  launch(context(), Convert{.out = working_.view(), .x = image().view()});
  if (!keeps_whole_master()) keep_own(image(), master_);
}

View ParameterStore::master_part(const OwnPart& part) const {
  return slice(master_, keeps_whole_master() ? part.span : Span{part.at, part.span.size});
}

void ParameterStore::move(const View& from, const View& to) const {
  if (from.dtype == to.dtype) return context().copy(to.data, from.data, from.bytes());
  launch(context(), Convert{.out = to, .x = from});
}

void ParameterStore::keep_own(const Tensor& whole, const Tensor& own) const {
  for (const OwnPart& part : own_) {
    move(slice(whole, part.span), slice(own, {part.at, part.span.size}));
  }
}

void ParameterStore::spread_own(const Tensor& own, const Tensor& whole) const {
  for (const OwnPart& part : own_) {
    move(slice(own, {part.at, part.span.size}), slice(whole, part.span));
  }
}

void ParameterStore::drop_training_copies() {
  for (Entry& entry : entries_) entry.parameter.grad = View{};
  grad_ = Tensor{};
  if (working_.defined()) master_ = Tensor{};
}

void ParameterStore::begin_step() {
  for (Entry& entry : entries_) entry.parameter.begin_step();
}

void ParameterStore::end_step() {
  for (Entry& entry : entries_) {
    if (!entry.windowed && !entry.parameter.written) launch(context(), Fill{.out = entry.parameter.grad, .value = 0});
  }
}

View ParameterStore::slice(const Tensor& flat, const Span& span) const {
  return at(flat, span.begin, {span.size});
}

}  // namespace egmla
