#include "lab/bench_tools.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/bf16.h"
#include "core/fp8.h"
#include "core/rng.h"
#include "kernels/layout.h"

namespace egmla {
namespace {

constexpr size_t kAlignment = 256;  // as far as any kernel looks at an address
constexpr float kE4m3Spread = 100;  // of e4m3's 448, as the factors of blocks leave normal values

// A block of values is drawn once; memory is filled with repeats of it.
const std::vector<float>& random_block() {
  static const std::vector<float> block = [] {
    std::vector<float> values(1000003);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(normal(1, i));
    return values;
  }();
  return block;
}

std::vector<char> random_bytes(DType dtype, int64_t elements) {
  const auto count = std::min(static_cast<size_t>(elements), random_block().size());
  std::vector<char> bytes(count * size_of(dtype));
  if (dtype == DType::i32) return bytes;
  for (size_t i = 0; i < count; ++i) {
    const float value = random_block()[i];
    if (dtype == DType::f32) reinterpret_cast<float*>(bytes.data())[i] = value;
    if (dtype == DType::f64) reinterpret_cast<double*>(bytes.data())[i] = static_cast<double>(value);
    if (dtype == DType::bf16) reinterpret_cast<uint16_t*>(bytes.data())[i] = bf16_from_float(value);
    if (dtype == DType::e4m3) reinterpret_cast<uint8_t*>(bytes.data())[i] = e4m3_from_float(kE4m3Spread * value);
  }
  return bytes;
}

void fill_randomly(Context& context, void* data, DType dtype, int64_t elements) {
  const std::vector<char> block = random_bytes(dtype, elements);
  const size_t bytes = static_cast<size_t>(elements) * size_of(dtype);
  context.copy_from_host(data, block.data(), block.size());
  for (size_t done = block.size(); done < bytes;) {
    const size_t part = std::min(done, bytes - done);
    context.copy(static_cast<char*>(data) + done, data, part);
    done += part;
  }
}

}  // namespace

Tensor random_like(Context& context, const View& like) {
  if (!like.defined()) return {};
  int64_t span = 1;
  for (int axis = 0; axis < like.rank(); ++axis) span += (like.size(axis) - 1) * like.stride(axis);
  const size_t width = size_of(like.dtype);
  const Tensor memory = Tensor::empty(context, {span + static_cast<int64_t>(kAlignment / width)}, like.dtype);
  fill_randomly(context, memory.view().data, like.dtype, memory.view().elements());
  View view = like;
  const auto phase = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % kAlignment; };
  const size_t shift = (phase(like.data) + kAlignment - phase(memory.view().data)) % kAlignment / width * width;
  view.data = static_cast<char*>(memory.view().data) + shift;
  return memory.with_view(view);
}

Tensor random_tensor(Context& context, const Shape& shape, DType dtype) {
  const Tensor out = Tensor::empty(context, shape, dtype);
  if (shape.elements() > 0) fill_randomly(context, out.view().data, dtype, shape.elements());
  return out;
}

double seconds_of(Context& context, const std::function<void()>& body) {
  constexpr int kWarmUps = 3, kRounds = 5, kMostRuns = 200;
  constexpr double kRoundSeconds = 0.02;
  const auto time = [&](int runs) {
    context.synchronize();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < runs; ++i) body();
    context.synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / runs;
  };
  time(kWarmUps);
  const int runs = static_cast<int>(std::clamp(kRoundSeconds / std::max(time(1), 1e-9), 1.0, double{kMostRuns}));
  std::vector<double> rounds;
  for (int i = 0; i < kRounds; ++i) rounds.push_back(time(runs));
  std::sort(rounds.begin(), rounds.end());
  return rounds[kRounds / 2];
}

double copy_bandwidth(Context& context) {
  constexpr int64_t kColumns = 4096;
  const int64_t rows = context.is_cpu() ? 1 << 12 : 1 << 16;  // 64 MiB, 1 GiB
  const Tensor source = random_tensor(context, {rows, kColumns}, DType::f32);
  const Tensor target = Tensor::empty(context, {rows, kColumns}, DType::f32);
  const size_t bytes = source.view().bytes();
  const double plain = seconds_of(context, [&] { context.copy(target.view().data, source.view().data, bytes); });
  const double ours = seconds_of(context, [&] { launch(context, Copy{.out = target.view(), .x = source.view()}); });
  return 2.0 * static_cast<double>(bytes) / std::min(plain, ours);
}

}  // namespace egmla
