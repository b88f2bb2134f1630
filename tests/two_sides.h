// One kernel on two sides: the CPU in double, and CUDA in float or bf16. Both draw the same inputs, rounded to what
// CUDA holds. Every tensor lies in a field of pattern bytes, before, behind and between its rows; a kernel that writes
// there, or into an input, is found out.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <list>
#include <map>

#include "core/bf16.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace egmla::testing_sides {

enum class Kind {
  data,    // f64 on the CPU, the tested type on CUDA
  master,  // f64 on the CPU, f32 on CUDA
  bf16,    // bf16 on CUDA; undefined on the CPU
};

struct Spec {
  Kind kind = Kind::data;
  int64_t pad = 0;    // elements between rows
  int64_t shift = 0;  // elements before the first, which spoils alignment
  double scale = 1.0;
  bool positive = false;
};

class Side {
 public:
  Side(Context& context, DType cuda_dtype) : context_(context), cuda_dtype_(cuda_dtype) {}

  Context& context() { return context_; }
  bool is_cpu() const { return context_.is_cpu(); }

  View in(const char* name, const Shape& shape, const Spec& spec = {}) { return add(name, shape, spec, true, false); }
  View out(const char* name, const Shape& shape, const Spec& spec = {}) { return add(name, shape, spec, false, true); }
  View in_out(const char* name, const Shape& shape, const Spec& spec = {}) {
    return add(name, shape, spec, true, true);
  }
  // Memory a kernel may fill as it likes.
  View workspace(const Shape& shape, Kind kind = Kind::master) {
    spaces_.push_back(Tensor::empty(context_, shape, dtype_of(kind)));
    return spaces_.back().view();
  }
  View ints(const Shape& shape, const std::vector<int32_t>& values) {
    spaces_.push_back(Tensor::from(context_, shape, values));
    return spaces_.back().view();
  }

  // Values of an output after the launch; also checks the pattern around every tensor.
  std::map<std::string, std::vector<double>> results() {
    std::map<std::string, std::vector<double>> all;
    for (const Slot& slot : slots_) {
      std::vector<uint8_t> bytes(slot.before.size());
      context_.copy_to_host(bytes.data(), slot.storage.view().data, bytes.size());
      std::vector<uint8_t> expected = slot.before;
      std::vector<double> values;
      for_each_offset(slot.view, [&](size_t offset) {
        const size_t at = slot.begin + offset * size_of(slot.view.dtype);
        values.push_back(read(bytes.data() + at, slot.view.dtype));
        if (slot.written) std::memcpy(expected.data() + at, bytes.data() + at, size_of(slot.view.dtype));
      });
      EXPECT_TRUE(bytes == expected) << slot.name
                                     << (slot.written ? ": written outside of it" : ": an input was changed");
      if (slot.written) all[slot.name] = values;
    }
    return all;
  }

 private:
  static constexpr size_t kGuard = 512;
  static constexpr uint8_t kPattern = 0xA5;

  struct Slot {
    std::string name;
    Tensor storage;
    View view;
    size_t begin = 0;  // of the view's data, in bytes
    bool written = false;
    std::vector<uint8_t> before;
  };

  DType dtype_of(Kind kind) const {
    if (is_cpu()) return DType::f64;
    return kind == Kind::bf16 ? DType::bf16 : kind == Kind::master ? DType::f32 : cuda_dtype_;
  }

  template <class F>
  static void for_each_offset(const View& view, F&& function) {
    for (int64_t n = 0; n < view.elements(); ++n) {
      int64_t rest = n, offset = 0;
      for (int axis = view.rank() - 1; axis >= 0; --axis) {
        offset += rest % view.size(axis) * view.stride(axis);
        rest /= view.size(axis);
      }
      function(static_cast<size_t>(offset));
    }
  }

  static double read(const uint8_t* bytes, DType dtype) {
    if (dtype == DType::f64) return load_as<double>(bytes);
    if (dtype == DType::f32) return static_cast<double>(load_as<float>(bytes));
    return static_cast<double>(float_from_bf16(load_as<uint16_t>(bytes)));
  }

  template <class T>
  static T load_as(const uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  }

  static void write(uint8_t* bytes, DType dtype, double value) {
    const float single = static_cast<float>(value);
    const uint16_t half = bf16_from_float(single);
    if (dtype == DType::f64) std::memcpy(bytes, &value, sizeof(value));
    if (dtype == DType::f32) std::memcpy(bytes, &single, sizeof(single));
    if (dtype == DType::bf16) std::memcpy(bytes, &half, sizeof(half));
  }

  View add(const char* name, const Shape& shape, const Spec& spec, bool filled, bool written) {
    if (spec.kind == Kind::bf16 && is_cpu()) return View{};
    Slot slot;
    slot.name = name;
    slot.written = written;
    slot.view = make_view(nullptr, shape, dtype_of(spec.kind));
    int64_t step = shape.back() + spec.pad;
    for (int axis = shape.rank() - 2; axis >= 0; --axis) {
      slot.view.strides[axis] = step;
      step *= shape[axis];
    }
    slot.begin = kGuard + static_cast<size_t>(spec.shift) * size_of(slot.view.dtype);
    const size_t span = static_cast<size_t>(std::max(step, shape.elements())) * size_of(slot.view.dtype);
    slot.before.assign((slot.begin + span + kGuard + 7) / 8 * 8, kPattern);
    const bool as_bf16 = spec.kind != Kind::master && cuda_dtype_ == DType::bf16;
    uint64_t counter = 0;
    if (filled) {
      for_each_offset(slot.view, [&](size_t offset) {
        const double drawn = spec.scale * normal(7, counter++, stream_of(name));
        const float value = static_cast<float>(spec.positive ? std::abs(drawn) + 0.1 * spec.scale : drawn);
        write(slot.before.data() + slot.begin + offset * size_of(slot.view.dtype), slot.view.dtype,
              static_cast<double>(as_bf16 ? float_from_bf16(bf16_from_float(value)) : value));
      });
    }
    slot.storage = Tensor::empty(context_, {static_cast<int64_t>(slot.before.size() / 4)}, DType::i32);
    context_.copy_from_host(slot.storage.view().data, slot.before.data(), slot.before.size());
    slot.view.data = static_cast<char*>(slot.storage.view().data) + slot.begin;
    slots_.push_back(slot);
    return slot.view;
  }

  Context& context_;
  DType cuda_dtype_;
  std::list<Slot> slots_;
  std::list<Tensor> spaces_;
};

// Runs `body(Side&)`, which launches kernels on views of that side, on both and compares what they wrote: the largest
// difference against the largest expected value.
template <class F>
void compare_sides(Context& cuda, DType dtype, F&& body) {
  const double tolerance = dtype == DType::bf16 ? 1e-2 : 1e-5;
  Context host;
  Side cpu_side(host, dtype), cuda_side(cuda, dtype);
  body(cpu_side);
  body(cuda_side);
  const auto expected = cpu_side.results(), found = cuda_side.results();
  for (const auto& [name, values] : expected) {
    if (!found.contains(name)) continue;  // scratch of the CPU's twin
    const std::vector<double>& other = found.at(name);
    ASSERT_EQ(values.size(), other.size()) << name;
    double largest = 1e-3, difference = 0;
    size_t worst = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      largest = std::max(largest, std::abs(values[i]));
      const double d = std::isfinite(other[i]) ? std::abs(values[i] - other[i]) : HUGE_VAL;
      if (d <= difference) continue;
      difference = d;
      worst = i;
    }
    if (values.empty()) continue;
    EXPECT_LE(difference, tolerance * largest) << name << " in " << name_of(dtype) << ", element " << worst
                                               << ": expected " << values[worst] << ", found " << other[worst];
  }
}

// A test of the CUDA back end; skipped where there is no device.
class KernelsCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }

  static Context& cuda() {
    static Context context(CudaDevice{0});
    return context;
  }
};

// Calls body(dtype, pad, shift) over both types and three layouts: packed, rows apart by aligned and by odd strides.
template <class F>
void for_layouts(F&& body) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [pad, shift] : {std::pair{0, 0}, std::pair{16, 8}, std::pair{3, 1}}) {
      SCOPED_TRACE(fmt::format("{}, pad {}, shift {}", name_of(dtype), pad, shift));
      body(dtype, pad, shift);
    }
  }
}

}  // namespace egmla::testing_sides
