// Attention on CUDA against the CPU in float64: outputs, lse and all gradients, over odd lengths, grouped heads, the
// shared rope key, documents, slices of packed buffers and decoding; nothing outside the outputs may change, and two
// runs must agree bit for bit.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "core/bf16.h"
#include "core/cuda_state.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "kernels/attention.h"
#include "kernels/attention_choice.h"
#include "kernels/matmul_plans.h"
#include "lab/bench_attention.h"

namespace egmla {
namespace {

constexpr double kGuard = 1024.0;  // exact in every type, and far from any result

struct Case {
  std::string name;
  int64_t B, Tq, Tk, H, Hkv, dk, dr, dv;
  int64_t documents = 0;  // tokens of the longest, or 0: one document a sequence
  bool packed = false;    // K and V interleaved per head in one buffer, the rope key behind a latent in another
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

std::vector<char> encode(const std::vector<double>& values, DType dtype) {
  std::vector<char> bytes(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto single = static_cast<float>(values[i]);
    if (dtype == DType::f64) reinterpret_cast<double*>(bytes.data())[i] = values[i];
    if (dtype == DType::f32) reinterpret_cast<float*>(bytes.data())[i] = single;
    if (dtype == DType::bf16) reinterpret_cast<uint16_t*>(bytes.data())[i] = bf16_from_float(single);
  }
  return bytes;
}

std::vector<double> decode(const std::vector<char>& bytes, DType dtype) {
  std::vector<double> values(bytes.size() / size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f64) values[i] = reinterpret_cast<const double*>(bytes.data())[i];
    if (dtype == DType::f32) values[i] = reinterpret_cast<const float*>(bytes.data())[i];
    if (dtype == DType::bf16) values[i] = float_from_bf16(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
  }
  return values;
}

// [B, T, heads, width] with guard cells before, after and between rows; views are slices of the last axis.
class Buffer {
 public:
  Buffer(Context& context, DType dtype, int64_t B, int64_t T, int64_t heads, int64_t width)
      : context_(context), B_(B), T_(T), heads_(heads), width_(width), row_(heads * width + kEdge) {
    const std::vector<double> guards(static_cast<size_t>(B * T * row_ + 2 * kEdge), kGuard);
    storage_ = Tensor::empty(context, {static_cast<int64_t>(guards.size())}, dtype);
    covered_.assign(guards.size(), false);
    write(guards);
  }

  View slice(int64_t begin, int64_t width) {
    View view = storage_.view();
    view.data = static_cast<char*>(view.data) + static_cast<size_t>(kEdge + begin) * size_of(view.dtype);
    view.shape = {B_, T_, heads_, width};
    view.strides = {T_ * row_, row_, width_, 1};
    for (const size_t i : places(begin, width)) covered_[i] = true;
    return view;
  }

  void fill(int64_t begin, int64_t width, const std::vector<double>& values) {
    std::vector<double> all = read();
    size_t next = 0;
    for (const size_t i : places(begin, width)) all[i] = values[next++];
    write(all);
  }

  std::vector<double> values(int64_t begin, int64_t width) const {
    const std::vector<double> all = read();
    std::vector<double> out;
    for (const size_t i : places(begin, width)) out.push_back(all[i]);
    return out;
  }

  // Cells outside all slices that no longer hold the guard.
  int64_t damage() const {
    const std::vector<double> all = read();
    int64_t count = 0;
    for (size_t i = 0; i < all.size(); ++i) count += !covered_[i] && all[i] != kGuard;
    return count;
  }

 private:
  static constexpr int64_t kEdge = 16;

  std::vector<size_t> places(int64_t begin, int64_t width) const {
    std::vector<size_t> out;
    for (int64_t n = 0; n < B_ * T_; ++n) {
      for (int64_t h = 0; h < heads_; ++h) {
        for (int64_t c = 0; c < width; ++c)
          out.push_back(static_cast<size_t>(kEdge + n * row_ + h * width_ + begin + c));
      }
    }
    return out;
  }
  void write(const std::vector<double>& values) {
    const std::vector<char> bytes = encode(values, storage_.dtype());
    context_.copy_from_host(storage_.view().data, bytes.data(), bytes.size());
  }
  std::vector<double> read() const {
    std::vector<char> bytes(storage_.view().bytes());
    context_.copy_to_host(bytes.data(), storage_.view().data, bytes.size());
    return decode(bytes, storage_.dtype());
  }

  Context& context_;
  int64_t B_, T_, heads_, width_, row_;
  Tensor storage_;
  std::vector<bool> covered_;
};

// What `values` become when stored as `dtype`, so that the reference starts from the same numbers.
std::vector<double> random_values(const std::string& name, int64_t count, DType dtype) {
  std::vector<double> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = normal(7, i, stream_of(name));
  return decode(encode(values, dtype), dtype);
}

// Documents of at least one token, others in each sequence.
std::vector<int32_t> document_starts(const Case& c) {
  std::vector<int32_t> starts;
  for (int64_t b = 0; b < c.B; ++b) {
    int64_t begin = 0, end = 0;
    for (int64_t t = 0; t < c.Tk; ++t) {
      if (t == end) {
        begin = t;
        end =
            t + 1 + static_cast<int64_t>(c.documents * uniform(11, static_cast<uint64_t>(t), static_cast<uint64_t>(b)));
      }
      if (t >= c.Tk - c.Tq) starts.push_back(static_cast<int32_t>(begin));
    }
  }
  return starts;
}

using Results = std::map<std::string, std::vector<double>>;

// The tensors of one case on one context. Packed: kv = [k | v] per head and latent = [8 others | rope].
class Problem {
 public:
  Problem(Context& context, const Case& c, DType dtype, DType source)
      : context_(context),
        case_(c),
        statistics_(dtype == DType::f64 ? DType::f64 : DType::f32),
        q_(context, dtype, c.B, c.Tq, c.H, c.dk + c.dr),
        q_grad_(context, dtype, c.B, c.Tq, c.H, c.dk + c.dr),
        out_(context, dtype, c.B, c.Tq, c.H, c.dv),
        out_grad_(context, dtype, c.B, c.Tq, c.H, c.dv),
        kv_(context, dtype, c.B, c.Tk, c.Hkv, c.dk + c.dv),
        kv_grad_(context, dtype, c.B, c.Tk, c.Hkv, c.dk + c.dv),
        k_(context, dtype, c.B, c.Tk, c.Hkv, c.dk),
        k_grad_(context, dtype, c.B, c.Tk, c.Hkv, c.dk),
        latent_(context, dtype, c.B, c.Tk, 1, kLatent + c.dr),
        latent_grad_(context, dtype, c.B, c.Tk, 1, kLatent + c.dr) {
    q_.fill(0, c.dk + c.dr, random_values("q", c.B * c.Tq * c.H * (c.dk + c.dr), source));
    key().fill(0, c.dk, random_values("k", c.B * c.Tk * c.Hkv * c.dk, source));
    kv_.fill(c.dk, c.dv, random_values("v", c.B * c.Tk * c.Hkv * c.dv, source));
    latent_.fill(kLatent, c.dr, random_values("rope", c.B * c.Tk * c.dr, source));
    out_grad_.fill(0, c.dv, random_values("out_grad", c.B * c.Tq * c.H * c.dv, source));
    if (c.documents) starts_ = Tensor::from(context, {c.B, c.Tq}, document_starts(c));
    lse_ = unset({c.B, c.H, c.Tq});
  }

  AttentionForward forward_kernel() {
    const Case& c = case_;
    return {.out = out_.slice(0, c.dv),
            .lse = lse_.view(),
            .q = q_.slice(0, c.dk + c.dr),
            .k = key().slice(0, c.dk),
            .k_rope = rope(latent_),
            .v = kv_.slice(c.dk, c.dv),
            .document_start = documents(),
            .scale = scale()};
  }

  void forward(Results& results) {
    const Case& c = case_;
    launch(context_, forward_kernel());
    results["out"] = out_.values(0, c.dv);
    results["lse"] = statistics_ == DType::f64 ? lse_.to_host<double>() : widened(lse_.to_host<float>());
    EXPECT_EQ(out_.damage(), 0) << "written outside out";
  }

  void backward(Results& results) {
    const Case& c = case_;
    const Tensor delta = unset({c.B, c.H, c.Tq});
    AttentionBackward kernel{.q_grad = q_grad_.slice(0, c.dk + c.dr),
                             .k_grad = key_grad().slice(0, c.dk),
                             .k_rope_grad = rope(latent_grad_),
                             .v_grad = kv_grad_.slice(c.dk, c.dv),
                             .delta = delta.view(),
                             .workspace = {},
                             .out_grad = out_grad_.slice(0, c.dv),
                             .out = out_.slice(0, c.dv),
                             .lse = lse_.view(),
                             .q = q_.slice(0, c.dk + c.dr),
                             .k = key().slice(0, c.dk),
                             .k_rope = rope(latent_),
                             .v = kv_.slice(c.dk, c.dv),
                             .document_start = documents(),
                             .scale = scale()};
    const int64_t size = context_.visit([&](auto& backend) { return attention_backward_workspace(backend, kernel); });
    const Tensor workspace = unset({size});
    if (size) kernel.workspace = workspace.view();
    launch(context_, kernel);
    results["q_grad"] = q_grad_.values(0, c.dk + c.dr);
    results["k_grad"] = key_grad().values(0, c.dk);
    results["v_grad"] = kv_grad_.values(c.dk, c.dv);
    if (c.dr) results["k_rope_grad"] = latent_grad_.values(kLatent, c.dr);
    EXPECT_EQ(q_grad_.damage() + key_grad().damage() + kv_grad_.damage() + latent_grad_.damage(), 0)
        << "written outside a gradient";
  }

 private:
  static constexpr int64_t kLatent = 8;

  Buffer& key() { return case_.packed ? kv_ : k_; }
  Buffer& key_grad() { return case_.packed ? kv_grad_ : k_grad_; }
  View rope(Buffer& buffer) { return case_.dr ? buffer.slice(kLatent, case_.dr) : View{}; }
  View documents() const { return starts_.defined() ? starts_.view() : View{}; }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(case_.dk + case_.dr)); }
  // Full of NaN, so that a value read before it is written shows.
  Tensor unset(const Shape& shape) {
    Tensor out = Tensor::empty(context_, shape, statistics_);
    const std::vector<double> nan(static_cast<size_t>(shape.elements()), std::numeric_limits<double>::quiet_NaN());
    const std::vector<char> bytes = encode(nan, statistics_);
    context_.copy_from_host(out.view().data, bytes.data(), bytes.size());
    return out;
  }
  static std::vector<double> widened(const std::vector<float>& x) { return {x.begin(), x.end()}; }

  Context& context_;
  Case case_;
  DType statistics_;
  Buffer q_, q_grad_, out_, out_grad_, kv_, kv_grad_, k_, k_grad_, latent_, latent_grad_;
  Tensor starts_, lse_;
};

Results results_of(Context& context, const Case& c, DType dtype, DType source) {
  Problem problem(context, c, dtype, source);
  Results results;
  problem.forward(results);
  if (c.Tq == c.Tk) problem.backward(results);
  return results;
}

// Both the norm of the error and its largest element stay within bounds set by the reference's norm and magnitude.
void expect_near(const std::string& name, const std::vector<double>& found, const std::vector<double>& expected,
                 double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  double error2 = 0, norm2 = 0, worst = 0, largest = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_TRUE(std::isfinite(found[i])) << name << " at " << i;
    const double error = found[i] - expected[i];
    error2 += error * error;
    norm2 += expected[i] * expected[i];
    worst = std::max(worst, std::abs(error));
    largest = std::max(largest, std::abs(expected[i]));
  }
  // A gradient that is exactly zero (one token: softmax of one score) leaves only rounding behind.
  const double floor = 0.1 * std::sqrt(static_cast<double>(found.size()));
  EXPECT_LE(std::sqrt(error2), tolerance * std::max(std::sqrt(norm2), floor)) << name;
  EXPECT_LE(worst, 3 * tolerance * std::max(largest, 0.1)) << name;
}

CudaContext& cuda_of(Context& context) {
  return context.visit([](auto& backend) -> CudaContext& {
    if constexpr (std::is_same_v<std::decay_t<decltype(backend)>, CudaContext>) return backend;
    fail("not a CUDA context");
  });
}

class AttentionCuda : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }

  void compare(DType dtype, double tolerance, AttentionPolicy policy) {
    Context host, device{CudaDevice{0}};
    set_attention_policy(cuda_of(device), policy);
    const Results expected = results_of(host, GetParam(), DType::f64, dtype);
    const Results found = results_of(device, GetParam(), dtype, dtype);
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [name, values] : expected) expect_near(name, found.at(name), values, tolerance);
    EXPECT_EQ(results_of(device, GetParam(), dtype, dtype), found) << "a second run differs";
  }
};

TEST_P(AttentionCuda, FloatMatchesCpu) {
  compare(DType::f32, 1e-5, AttentionPolicy::native);
}
TEST_P(AttentionCuda, Bf16MatchesCpu) {
  compare(DType::bf16, 1e-2, AttentionPolicy::native);
}
// The kernels of every card, where the card's own would run.
TEST_P(AttentionCuda, PortableMatchesCpu) {
  Context device{CudaDevice{0}};
  if (!hopper_accepts(cuda_of(device), Problem(device, GetParam(), DType::bf16, DType::bf16).forward_kernel()))
    GTEST_SKIP() << "the same as Bf16MatchesCpu";
  compare(DType::bf16, 1e-2, AttentionPolicy::portable);
}
TEST_P(AttentionCuda, CudnnMatchesCpu) {
  Context device{CudaDevice{0}};
  if (!cudnn_accepts(cuda_of(device), Problem(device, GetParam(), DType::bf16, DType::bf16).forward_kernel()))
    GTEST_SKIP() << "cuDNN is missing or does not take this case";
  compare(DType::bf16, 1e-2, AttentionPolicy::cudnn);
}

// name, B, Tq, Tk, H, Hkv, dk, dr, dv, documents, packed
const Case kCases[] = {
    {"one_token", 2, 1, 1, 2, 2, 64, 0, 64},
    {"w64", 1, 257, 257, 2, 2, 64, 0, 64},
    {"w64_grouped", 2, 129, 129, 4, 2, 64, 0, 64},
    {"w96_rope", 2, 33, 33, 3, 3, 64, 32, 64},
    {"w96_packed", 2, 129, 129, 2, 2, 64, 32, 64, 0, true},
    {"w96_documents", 2, 257, 257, 2, 2, 64, 32, 64, 40, true},
    {"w128_64_rope", 1, 63, 63, 2, 2, 64, 64, 64, 0, true},
    {"w128", 1, 65, 65, 2, 2, 128, 0, 128},
    {"w128_grouped_documents", 2, 129, 129, 4, 1, 128, 0, 128, 40},
    {"w192_128_rope", 1, 129, 129, 2, 2, 128, 64, 128, 0, true},
    {"w192_128_exact_tiles", 1, 128, 128, 2, 2, 128, 64, 128},
    {"w256", 1, 65, 65, 2, 1, 256, 0, 256},
    {"w160_144_rope_documents", 2, 129, 129, 2, 2, 96, 64, 144, 40, true},
    {"w32_16_rope_grouped", 2, 33, 33, 4, 2, 16, 16, 16, 0, true},
    {"w80_48", 1, 63, 63, 2, 2, 48, 32, 48, 0, true},
    {"odd_widths", 2, 65, 65, 4, 2, 24, 10, 20, 40, true},
    {"decode_one", 2, 1, 257, 2, 2, 64, 32, 64, 0, true},
    {"decode_grouped_documents", 2, 5, 133, 4, 2, 128, 0, 128, 40},
    {"decode_chunk", 1, 130, 257, 2, 2, 128, 64, 128, 0, true},
    {"w64_long", 1, 641, 641, 2, 2, 64, 0, 64},
    {"w64_documents_long", 2, 700, 700, 2, 1, 64, 0, 64, 300},
    {"w96_grouped_long", 1, 520, 520, 4, 2, 64, 32, 64, 0, true},
    {"w96_documents_long", 1, 800, 800, 2, 2, 64, 32, 64, 500, true},
    {"w128_rope_long", 1, 300, 300, 2, 2, 64, 64, 128, 0, true},
    {"w128_documents_long", 1, 777, 777, 2, 2, 128, 0, 128, 300, true},
    {"w128_exact_tiles_long", 2, 512, 512, 2, 1, 128, 0, 128},
    {"w192_long", 1, 450, 450, 2, 2, 128, 64, 128, 0, true},
    {"w192_wide_rope_documents", 1, 400, 400, 2, 2, 64, 128, 128, 200, true},
    {"w160_96_long", 1, 260, 260, 2, 1, 160, 0, 96},
    {"w48_40_long", 1, 200, 200, 2, 1, 48, 0, 40},
    {"extend", 1, 200, 457, 2, 2, 64, 32, 64, 0, true},
    {"extend_documents", 1, 300, 555, 2, 1, 128, 0, 128, 200},
};

INSTANTIATE_TEST_SUITE_P(Cases, AttentionCuda, testing::ValuesIn(kCases),
                         [](const auto& instance) { return instance.param.name; });

TEST(AttentionHopper, TakesTheWidthsOfModelsAndLeavesOthers) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  Context device{CudaDevice{0}};
  CudaContext& cuda = cuda_of(device);
  if (cuda.state().capability != 90) GTEST_SKIP() << "not a Hopper card";
  const auto takes = [&](const Case& c) {
    return hopper_accepts(cuda, Problem(device, c, DType::bf16, DType::bf16).forward_kernel());
  };
  EXPECT_TRUE(takes({"", 1, 128, 128, 2, 2, 64, 0, 64}));
  EXPECT_TRUE(takes({"", 1, 128, 128, 2, 1, 64, 32, 64, 40, true}));
  EXPECT_TRUE(takes({"", 1, 128, 128, 2, 2, 128, 0, 128}));
  EXPECT_TRUE(takes({"", 1, 128, 128, 2, 2, 128, 64, 128, 0, true}));
  EXPECT_FALSE(takes({"decoding", 1, 1, 128, 2, 2, 64, 0, 64}));
  EXPECT_FALSE(takes({"too wide", 1, 128, 128, 2, 2, 256, 0, 256}));
  EXPECT_FALSE(takes({"a rope key inside a panel", 1, 128, 128, 2, 2, 32, 32, 64}));
  EXPECT_FALSE(takes({"rows off 16 bytes", 1, 128, 128, 2, 2, 60, 0, 64}));
}

TEST(AttentionCudaErrors, RefusesWidthsBeyondItsRegisters) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  Context device{CudaDevice{0}};
  Results results;
  try {
    Problem(device, {"too_wide", 1, 2, 2, 1, 1, 288, 0, 64}, DType::bf16, DType::bf16).forward(results);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "attention: the CUDA back end handles head widths up to 256; q has 288, v has 64");
  }
}

// What one run measured, another takes from the plan file, and computes the same bits.
TEST(AttentionChoice, SurvivesInThePlanFile) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const Case c{"long", 1, 512, 512, 2, 2, 64, 32, 64};
  Context first{CudaDevice{0}}, second{CudaDevice{0}};
  const Results expected = results_of(first, c, DType::bf16, DType::bf16);
  const std::string text = attention_choices_text(cuda_of(first));
  if (text.empty()) GTEST_SKIP() << "no cuDNN, so there is nothing to choose";
  const std::string path = std::filesystem::temp_directory_path() / fmt::format("egmla_choices_{}", ::getpid());
  save_matmul_plans(cuda_of(first), path);
  EXPECT_EQ(load_matmul_plans(cuda_of(second), path), 2) << text;
  std::filesystem::remove(path);
  EXPECT_EQ(results_of(second, c, DType::bf16, DType::bf16), expected);
  EXPECT_EQ(attention_choices_text(cuda_of(second)), text);
}

TEST(AttentionBench, CountsFlopsOfTheShapesItReads) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const auto device = bench_device();
  const std::vector<AttentionTiming> timings = bench_attention(*device, {parse_attention_shape("2,3,256,64+32,64")});
  ASSERT_FALSE(timings.empty());
  EXPECT_EQ(timings[0].backend, "native");
  for (const AttentionTiming& t : timings) {
    EXPECT_NEAR(t.forward_tflops * t.forward_ms, 2 * 3 * 256 * 256 * (96 + 64) * 1e-9, 1e-6);
    EXPECT_NEAR(t.backward_tflops * t.backward_ms, 2 * 3 * 256 * 256 * (3 * 96 + 2 * 64) * 1e-9, 1e-6);
  }
  EXPECT_THROW(parse_attention_shape("2,3,256,64"), Error);
}

}  // namespace
}  // namespace egmla
