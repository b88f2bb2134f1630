// The CUDA back end around its kernels: products and their plans, the optimizer, memory.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "core/cuda_state.h"
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/matmul_plans.h"
#include "two_sides.h"

namespace egmla {
namespace {

using namespace testing_sides;

class BackendCuda : public KernelsCuda {};

TEST_F(BackendCuda, Sums) {
  for (const int64_t n : {1, 33, 1023, 100003}) {
    SCOPED_TRACE(n);
    compare_sides(cuda(), DType::f32, [&](Side& side) {
      const Spec master{.kind = Kind::master}, positive{.kind = Kind::master, .shift = n % 2, .positive = true};
      launch(side.context(), Sum{.out = side.out("sum", {1}, master), .x = side.in("x", {n}, positive), .scale = 0.25});
      const View partials = side.workspace({kSquareSumPartials});
      launch(side.context(), SquareSum{.partials = partials, .x = side.in("g", {n}, positive)});
      launch(side.context(), GradNorm{.norm = side.out("norm", {1}, master), .partials = partials});
    });
  }
}

void run_adamw(Side& side, int64_t n, double max_norm, double norm_scale) {
  const Spec master{.kind = Kind::master, .shift = n % 3}, positive{.kind = Kind::master, .positive = true};
  launch(side.context(),
         AdamW{.master = side.in_out("w", {n}, master),
               .exp_avg = side.in_out("m", {n}, master),
               .exp_avg_sq = side.in_out("v", {n}, positive),
               .working = side.out("working", {n}, {.kind = Kind::bf16}),
               .grad = side.in("g", {n}, master),
               .grad_norm = side.in("norm", {1}, {.kind = Kind::master, .scale = norm_scale, .positive = true}),
               .max_norm = max_norm,
               .lr = 1e-2,
               .weight_decay = 0.1,
               .step = 3});
}

TEST_F(BackendCuda, AdamW) {
  for (const int64_t n : {1, 33, 1023, 5000}) {
    SCOPED_TRACE(n);
    compare_sides(cuda(), DType::f32, [&](Side& side) { run_adamw(side, n, 1.0, 1e3); });
    compare_sides(cuda(), DType::f32, [&](Side& side) { run_adamw(side, n, 0.0, 1e3); });
    Side side(cuda(), DType::f32);
    run_adamw(side, n, 1.0, 1e3);
    const auto results = side.results();
    for (size_t i = 0; i < results.at("w").size(); ++i) {
      const float w = static_cast<float>(results.at("w")[i]);
      ASSERT_EQ(static_cast<float>(results.at("working")[i]), float_from_bf16(bf16_from_float(w))) << i;
    }
    Side frozen(cuda(), DType::f32), before(cuda(), DType::f32);
    run_adamw(frozen, n, 1.0, HUGE_VAL);
    const View w = before.in_out("w", {n}, {.kind = Kind::master, .shift = n % 3});
    ASSERT_TRUE(w.defined());
    EXPECT_EQ(frozen.results().at("w"), before.results().at("w"));
  }
}

// With these rates and gradients of few bits both sides compute the same m and v, so that equal draws give equal bits.
TEST_F(BackendCuda, AdamWRoundsBf16MomentsAsTheCpu) {
  for (const int64_t n : {1, 33, 1023, 5000}) {
    for (const int64_t shift : {0, 1}) {
      SCOPED_TRACE(fmt::format("{} elements, shift {}", n, shift));
      const auto run = [&](Context& context) {
        std::vector<float> w, g;
        std::vector<uint16_t> moments;
        for (int64_t i = 0; i < n + shift; ++i) {
          const auto value = static_cast<float>(normal(7, static_cast<uint64_t>(i)));
          w.push_back(value);
          moments.push_back(bf16_from_float(std::abs(value) + 0.1F));
          g.push_back(float_from_bf16(bf16_from_float(static_cast<float>(normal(8, static_cast<uint64_t>(i))))));
        }
        const Shape shape = {n + shift};
        const Tensor master = Tensor::from(context, shape, w), grad = Tensor::from(context, shape, g),
                     m = Tensor::from(context, shape, moments), v = Tensor::from(context, shape, moments),
                     norm = Tensor::from(context, {1}, std::vector<float>{1.F});
        for (int64_t step = 1; step <= 3; ++step) {
          launch(context, AdamW{.master = master.view().columns(shift, n),
                                .exp_avg = m.view().columns(shift, n),
                                .exp_avg_sq = v.view().columns(shift, n),
                                .working = {},
                                .grad = grad.view().columns(shift, n),
                                .grad_norm = norm.view(),
                                .lr = 1e-2,
                                .beta1 = 0.5,
                                .beta2 = 0.5,
                                .weight_decay = 0.1,
                                .step = step,
                                .seed = 9,
                                .first = 1 << 20});
        }
        return std::tuple(m.to_host<uint16_t>(), v.to_host<uint16_t>(), master.to_host<float>());
      };
      Context host;
      const auto [m, v, w] = run(host);
      const auto [cuda_m, cuda_v, cuda_w] = run(cuda());
      EXPECT_EQ(cuda_m, m);
      EXPECT_EQ(cuda_v, v);
      for (size_t i = 0; i < w.size(); ++i) ASSERT_NEAR(cuda_w[i], w[i], 1e-5) << i;
    }
  }
}

struct MatmulCase {
  int64_t M, N, K;
  bool transpose_a, transpose_b, accumulate;
};

void run_matmul(Side& side, const MatmulCase& c, Kind out, const Spec& spec) {
  Spec out_spec = spec;
  out_spec.kind = out;
  launch(side.context(), Matmul{.out = side.in_out("out", {c.M, c.N}, out_spec),
                                .a = side.in("a", c.transpose_a ? Shape{c.K, c.M} : Shape{c.M, c.K}, spec),
                                .b = side.in("b", c.transpose_b ? Shape{c.N, c.K} : Shape{c.K, c.N}, spec),
                                .transpose_a = c.transpose_a,
                                .transpose_b = c.transpose_b,
                                .accumulate = c.accumulate,
                                .alpha = 0.5});
}

TEST_F(BackendCuda, Matmul) {
  for_layouts([&](DType dtype, int64_t pad, int64_t shift) {
    for (const auto& [M, N, K] : {std::array<int64_t, 3>{1, 1, 1}, {33, 17, 65}, {128, 96, 64}, {131, 257, 1023}}) {
      for (int mode = 0; mode < 8; ++mode) {
        const MatmulCase c{M, N, K, (mode & 1) != 0, (mode & 2) != 0, (mode & 4) != 0};
        SCOPED_TRACE(fmt::format("M {}, N {}, K {}, mode {}", M, N, K, mode));
        const Spec spec{.pad = pad, .shift = shift};
        compare_sides(cuda(), dtype, [&](Side& side) { run_matmul(side, c, Kind::data, spec); });
        if (dtype == DType::bf16)
          compare_sides(cuda(), dtype, [&](Side& side) { run_matmul(side, c, Kind::master, spec); });
      }
    }
  });
}

TEST_F(BackendCuda, MatmulRefusesShapesThatDoNotMeet) {
  const Tensor a = Tensor::zeros(cuda(), {4, 8}, DType::f32);
  try {
    launch(cuda(), Matmul{.out = a.view(), .a = a.view(), .b = a.view()});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("out is [4,8], a is [4,8], b is [4,8]"), std::string::npos)
        << error.what();
  }
}

// What one run chose, another takes from the file and gives back the same bits.
TEST_F(BackendCuda, MatmulPlansSurvive) {
  const std::string path = std::filesystem::temp_directory_path() / fmt::format("egmla_plans_{}", ::getpid());
  const MatmulCase c{96, 128, 320, false, true, true};
  Context first(CudaDevice{0}), second(CudaDevice{0});
  const auto product = [&](Context& context) {
    Side side(context, DType::bf16);
    run_matmul(side, c, Kind::master, {});
    return side.results().at("out");
  };
  const auto cuda_of = [](Context& context) -> CudaContext& {
    return context.visit([](auto& backend) -> CudaContext& {
      if constexpr (std::is_same_v<std::decay_t<decltype(backend)>, CudaContext>) return backend;
      fail("not a CUDA context");
    });
  };
  const std::vector<double> expected = product(first);
  save_matmul_plans(cuda_of(first), path);
  EXPECT_EQ(load_matmul_plans(cuda_of(second), path), 1);
  const auto plan = cuda_of(second).state().matmul_plans.begin()->second;
  EXPECT_EQ(product(second), expected);
  const auto& used = cuda_of(second).state().matmul_plans.begin()->second;
  EXPECT_TRUE(
      std::equal(std::begin(plan.algorithm.data), std::end(plan.algorithm.data), std::begin(used.algorithm.data)));
  EXPECT_EQ(load_matmul_plans(cuda_of(second), path + ".absent"), 0);
  std::filesystem::remove(path);
}

TEST_F(BackendCuda, MemoryIsReusedAndCounted) {
  Context context(CudaDevice{0});
  void* first = context.allocate(10000);
  EXPECT_EQ(context.memory().in_use, 12288);
  context.release(first, 10000);
  EXPECT_EQ(context.memory().in_use, 0);
  EXPECT_EQ(context.allocate(9000), first);
  EXPECT_EQ(context.memory().reserved, 12288);
  EXPECT_EQ(context.memory().peak, 12288);
  context.release(first, 9000);
}

TEST_F(BackendCuda, OutOfMemoryNamesTheRemedy) {
  Context context(CudaDevice{0});
  try {
    context.allocate(size_t{1} << 45);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("lower train.micro_batch_size"), std::string::npos) << error.what();
  }
  const Tensor after = Tensor::zeros(context, {16}, DType::f32);  // the context is still usable
  EXPECT_EQ(after.to_host<float>(), std::vector<float>(16, 0.0f));
}

TEST_F(BackendCuda, MemoryLimitIsKept) {
  Context context(CudaDevice{0});
  context.memory().limit = 1 << 20;
  EXPECT_EQ(context.capacity(), 1 << 20);
  { const Tensor fits = Tensor::zeros(context, {1 << 17}, DType::f32); }
  { const Tensor other_size = Tensor::zeros(context, {3 << 16}, DType::f32); }  // takes the place of the first
  EXPECT_THROW(Tensor::zeros(context, {1 << 19}, DType::f32), Error);
}

// More copies than the context has blocks for, the sources changing behind them.
TEST_F(BackendCuda, CopiesFromTheHostMayOverlap) {
  Context context(CudaDevice{0});
  std::vector<Tensor> tensors;
  for (int32_t i = 0; i < 100; ++i)
    tensors.push_back(Tensor::from(context, {1000 + i}, std::vector<int32_t>(static_cast<size_t>(1000 + i), i)));
  for (int32_t i = 0; i < 100; ++i)
    EXPECT_EQ(tensors[static_cast<size_t>(i)].to_host<int32_t>(),
              std::vector<int32_t>(static_cast<size_t>(1000 + i), i));
}

TEST_F(BackendCuda, LateReadsSeeTheValuesOfTheirTime) {
  Context context(CudaDevice{0});
  const Tensor value = Tensor::from(context, {1}, std::vector<float>{1});
  std::vector<std::unique_ptr<HostCopy>> reads;
  for (int i = 0; i < 5; ++i) {
    reads.push_back(context.copy_to_host_later(value.view().data, sizeof(float)));
    launch(context, Add{.out = value.view(), .a = value.view(), .b = value.view()});
  }
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(*static_cast<const float*>(reads[i]->wait()), static_cast<float>(1 << i));
}

// With halt, updates stop at the first bad norm.
TEST_F(BackendCuda, HaltingNormStays) {
  const auto norm_after = [&](Context& context, double scale, bool halt) {
    Side side(context, DType::f32);
    const Spec master{.kind = Kind::master}, before{.kind = Kind::master, .scale = scale, .positive = true};
    const View partials = side.workspace({kSquareSumPartials});
    launch(context, SquareSum{.partials = partials, .x = side.in("g", {33}, master)});
    launch(context, GradNorm{.norm = side.in_out("norm", {1}, before), .partials = partials, .halt = halt});
    return side.results().at("norm").front();
  };
  Context host;
  for (Context* context : {&host, &cuda()}) {
    EXPECT_TRUE(std::isfinite(norm_after(*context, 1, true)));
    EXPECT_TRUE(std::isfinite(norm_after(*context, HUGE_VAL, false)));
    EXPECT_FALSE(std::isfinite(norm_after(*context, HUGE_VAL, true)));
  }
}

TEST_F(BackendCuda, DeviceOutOfRangeIsRefused) {
  EXPECT_THROW(Context(CudaDevice{cuda_device_count()}), Error);
}

}  // namespace
}  // namespace egmla
