// fp8 on Hopper: the quantiser to the bits of its twin, products and whole layers against double within the bounds that
// three bits of mantissa leave, and training beside bf16.
#include <gtest/gtest.h>

#include <cmath>

#include "core/bf16.h"
#include "core/fp8.h"
#include "core/rng.h"
#include "infer/device.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/quantize.h"
#include "model_variants.h"
#include "op_case.h"
#include "ops/fp8.h"
#include "optim/adamw.h"
#include "two_sides.h"

namespace egmla::test {
namespace {

class Fp8Cuda : public testing_sides::KernelsCuda {
 protected:
  void SetUp() override {
    KernelsCuda::SetUp();
    if (IsSkipped()) return;
    try {
      trains_in_fp8(Precision::fp8, cuda());
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
};

struct Copies {
  QuantizedViews views;
  std::vector<Tensor> memory;

  // Values and factors of both copies.
  std::vector<std::vector<uint8_t>> bytes() const {
    std::vector<std::vector<uint8_t>> out;
    for (const Tensor& tensor : memory) {
      out.emplace_back(tensor.view().bytes());
      tensor.context().copy_to_host(out.back().data(), tensor.view().data, out.back().size());
    }
    return out;
  }
};

Copies make_copies(Context& context, int64_t R, int64_t C, bool square) {
  Copies out;
  const auto make = [&](const Shape& shape, DType dtype) {
    out.memory.push_back(Tensor::zeros(context, shape, dtype));
    return out.memory.back().view();
  };
  out.views = {.rows = make({R, fp8_padded(C)}, DType::e4m3),
               .row_scales = make(fp8_scale_shape(R, C, square), DType::f32),
               .columns = make({C, fp8_padded(R)}, DType::e4m3),
               .column_scales = make(fp8_scale_shape(C, R, square), DType::f32),
               .square = square};
  return out;
}

// Normal values times powers of two from 2^-12 to 2^11, some of them zero.
std::vector<double> wide_values(int64_t count) {
  std::vector<double> values = random_values(count, 11, 3);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = i % 7 == 3 ? 0.0 : std::ldexp(values[i], static_cast<int>(i * 2654435761u % 24) - 12);
  return values;
}

TEST_F(Fp8Cuda, TheQuantiserGivesTheBitsOfItsTwin) {
  Context host;
  for (const auto& [R, C] :
       {std::pair<int64_t, int64_t>{1, 1}, {16, 128}, {128, 128}, {33, 200}, {130, 257}, {400, 1792}, {208, 3008}}) {
    for (const int64_t pad : {0, 8, 3}) {
      for (const bool square : {false, true}) {
        SCOPED_TRACE(fmt::format("{} x {}, pad {}, square {}", R, C, pad, square));
        const std::vector<double> x = wide_values(R * (C + pad));
        const Tensor on_host = tensor_of(host, {R, C + pad}, x, DType::f32),
                     on_device = tensor_of(cuda(), {R, C + pad}, x, DType::bf16);
        const Copies expected = make_copies(host, R, C, square), found = make_copies(cuda(), R, C, square);
        launch(host, Quantize{.out = expected.views, .x = on_host.view().columns(pad, C)});
        launch(cuda(), Quantize{.out = found.views, .x = on_device.view().columns(pad, C)});
        EXPECT_TRUE(found.bytes() == expected.bytes());
        Copies half = make_copies(cuda(), R, C, square);
        QuantizedViews rows = half.views, columns = half.views;
        rows.columns = columns.rows = View{};
        launch(cuda(), Quantize{.out = rows, .x = on_device.view().columns(pad, C)});
        launch(cuda(), Quantize{.out = columns, .x = on_device.view().columns(pad, C)});
        EXPECT_TRUE(half.bytes() == expected.bytes()) << "one copy at a time";
      }
    }
  }
}

TEST_F(Fp8Cuda, SwigluInsideTheQuantiserKeepsItsBits) {
  for (const auto& [R, F] : {std::pair<int64_t, int64_t>{33, 72}, {256, 128}, {400, 4864}}) {
    SCOPED_TRACE(fmt::format("{} x {}", R, F));
    const Tensor gate_up = tensor_of(cuda(), {R, 2 * F}, random_values(R * 2 * F, 3, 1), DType::bf16);
    const Tensor dy = tensor_of(cuda(), {R, F}, random_values(R * F, 3, 2), DType::bf16);
    const Tensor out = Tensor::empty(cuda(), {R, F}, DType::bf16),
                 grad = Tensor::empty(cuda(), {R, 2 * F}, DType::bf16);
    launch(cuda(), SwigluForward{.out = out.view(), .gate_up = gate_up.view()});
    launch(cuda(), SwigluBackward{.gate_up_grad = grad.view(), .out_grad = dy.view(), .gate_up = gate_up.view()});
    const Copies apart = make_copies(cuda(), R, F, false), fused = make_copies(cuda(), R, F, false);
    launch(cuda(), Quantize{.out = apart.views, .x = out.view()});
    launch(cuda(), QuantizeSwiglu{.out = fused.views, .gate_up = gate_up.view()});
    EXPECT_TRUE(fused.bytes() == apart.bytes()) << "forward";
    const Copies apart_grad = make_copies(cuda(), R, 2 * F, false), fused_grad = make_copies(cuda(), R, 2 * F, false);
    launch(cuda(), Quantize{.out = apart_grad.views, .x = grad.view()});
    launch(cuda(), QuantizeSwigluBackward{.out = fused_grad.views, .out_grad = dy.view(), .gate_up = gate_up.view()});
    EXPECT_TRUE(fused_grad.bytes() == apart_grad.bytes()) << "backward";
  }
}

// A NaN or an infinity stays visible in what its block enters.
TEST_F(Fp8Cuda, NonFiniteValuesReachTheProduct) {
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    std::vector<double> x(32 * 256, 1.0);
    x[5 * 256 + 130] = bad;
    const Tensor a = tensor_of(cuda(), {32, 256}, x, DType::bf16),
                 w = tensor_of(cuda(), {16, 256}, std::vector<double>(16 * 256, 1.0), DType::bf16);
    const Tensor out = Tensor::empty(cuda(), {32, 16}, DType::bf16);
    ops::multiply(out.view(), ops::quantize(a, {}).rows, ops::quantize(w, {}).rows);
    const std::vector<double> found = doubles_of(out);
    for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(std::isfinite(found[i]), i / 16 != 5) << i;
  }
}

double distance(const std::vector<double>& found, const std::vector<double>& exact) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (found[i] - exact[i]) * (found[i] - exact[i]);
    size += exact[i] * exact[i];
  }
  return std::sqrt(difference / size);
}

// s q of a copy of rows, as the product reads them.
std::vector<double> values_of(const Fp8Matrix& copy) {
  const int64_t outer = copy.values.shape()[0], inner = copy.values.shape()[1];
  std::vector<uint8_t> codes(static_cast<size_t>(outer * inner));
  copy.values.context().copy_to_host(codes.data(), copy.values.view().data, codes.size());
  const std::vector<float> scales = copy.scales.to_host<float>();
  std::vector<double> out(codes.size());
  const int64_t stride = copy.scales.shape()[1];
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i) {
      const int64_t at = copy.square ? o / kFp8Block * stride + i / kFp8Block : i / kFp8Block * stride + o;
      out[static_cast<size_t>(o * inner + i)] = static_cast<double>(scales[static_cast<size_t>(at)]) *
                                                float_from_e4m3(codes[static_cast<size_t>(o * inner + i)]);
    }
  }
  return out;
}

// Of values that e4m3 holds only the sums are inexact: 14 bits in a block of 128, f32 between blocks.
TEST_F(Fp8Cuda, ProductsOfCopies) {
  for (const auto& [M, N, K] :
       {std::array<int64_t, 3>{16, 16, 128}, {208, 3008, 1792}, {256, 1792, 3072}, {48, 80, 4096}}) {
    for (const bool square : {false, true}) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(fmt::format("{} x {} x {}, square {}, accumulate {}", M, N, K, square, accumulate));
        const Tensor x = tensor_of(cuda(), {M, K}, random_values(M * K, 1, 1), DType::bf16);
        const Tensor w = tensor_of(cuda(), {N, K}, random_values(N * K, 1, 2), DType::bf16);
        const Tensor g = Tensor::zeros(cuda(), {N, K}, DType::f32);
        Parameter parameter{"w", w.view(), g.view()};
        const Fp8Matrix a = ops::quantize(x, {}).rows;
        const Fp8Matrix b = square ? ops::fp8_copies(cuda(), parameter).rows : ops::quantize(w, {}).rows;
        const std::vector<double> before = random_values(M * N, 1, 3);
        const Tensor out = tensor_of(cuda(), {M, N}, before, DType::f32);
        ops::multiply(out.view(), a, b, accumulate);
        Context host;
        const Tensor ha = Tensor::from(host, {M, K}, values_of(a)), hb = Tensor::from(host, {N, K}, values_of(b));
        const Tensor exact = Tensor::from(host, {M, N}, before);
        launch(
            host,
            Matmul{.out = exact.view(), .a = ha.view(), .b = hb.view(), .transpose_b = true, .accumulate = accumulate});
        EXPECT_LT(distance(doubles_of(out), exact.to_host<double>()), 5e-3);
      }
    }
  }
}

struct LayerResult {
  std::vector<double> y, x_grad;
  std::vector<std::vector<double>> weight_grads;
};

// y, dx and, after two backward passes that add up, dW.
LayerResult run_layer(Context& context, DType dtype, const Shape& shape, const std::vector<Shape>& weights, bool fp8,
                      const std::function<Var(const Var&, std::deque<Parameter>&)>& layer) {
  std::deque<Parameter> parameters;
  std::vector<Tensor> memory;
  for (size_t i = 0; i < weights.size(); ++i) {
    std::vector<double> values = random_values(weights[i].elements(), 5, 10 + i);
    for (double& value : values) value /= 32;
    memory.push_back(tensor_of(context, weights[i], values, dtype));
    memory.push_back(Tensor::zeros(context, weights[i], dtype == DType::f64 ? DType::f64 : DType::f32));
    parameters.push_back({"w", memory[2 * i].view(), memory[2 * i + 1].view()});
  }
  LayerResult out;
  for (uint64_t pass = 0; pass < 2; ++pass) {
    Tape tape(context);
    tape.set_fp8(fp8);
    const Var x = tape.variable(tensor_of(context, shape, random_values(shape.elements(), 6, pass), dtype));
    const Var y = layer(x, parameters);
    out.y = doubles_of(y.value);
    tape.backward(y, tensor_of(context, y.shape(), random_values(y.shape().elements(), 7, pass), dtype));
    out.x_grad = doubles_of(tape.grad_of(x));
  }
  for (size_t i = 0; i < weights.size(); ++i) out.weight_grads.push_back(doubles_of(memory[2 * i + 1]));
  return out;
}

// Rounding to e4m3 errs by 2.6 % of a value in the root mean square, so a product of two by 3.7 %; below 1 % the
// product would not have run in e4m3 at all.
void expect_e4m3(const std::vector<double>& found, const std::vector<double>& exact, double bound) {
  EXPECT_LT(distance(found, exact), bound);
  EXPECT_GT(distance(found, exact), 0.01);
}

Var one_linear(const Var& x, std::deque<Parameter>& p) {
  return ops::linear(x, p[0]);
}
Var one_ffn(const Var& x, std::deque<Parameter>& p) {
  return ops::swiglu_ffn(x, p[0], p[1]);
}

TEST_F(Fp8Cuda, LinearAgreesWithDouble) {
  Context host;
  for (const auto& [N, K, M] : {std::array<int64_t, 3>{208, 1792, 3008}, {256, 1024, 1024}}) {
    SCOPED_TRACE(fmt::format("{} rows, {} -> {}", N, K, M));
    const Shape x = {2, N / 2, K};
    const LayerResult exact = run_layer(host, DType::f64, x, {{M, K}}, false, one_linear);
    const LayerResult found = run_layer(cuda(), DType::bf16, x, {{M, K}}, true, one_linear);
    expect_e4m3(found.y, exact.y, 0.045);
    expect_e4m3(found.x_grad, exact.x_grad, 0.045);
    expect_e4m3(found.weight_grads[0], exact.weight_grads[0], 0.045);
    const LayerResult again = run_layer(cuda(), DType::bf16, x, {{M, K}}, true, one_linear);
    EXPECT_TRUE(again.y == found.y && again.x_grad == found.x_grad && again.weight_grads == found.weight_grads);
  }
}

TEST_F(Fp8Cuda, FeedForwardAgreesWithDouble) {
  Context host;
  const Shape x = {2, 104, 1024};
  const std::vector<Shape> weights = {{4416, 1024}, {1024, 2208}};  // the halves meet inside a tile
  const LayerResult exact = run_layer(host, DType::f64, x, weights, false, one_ffn);
  const LayerResult found = run_layer(cuda(), DType::bf16, x, weights, true, one_ffn);
  expect_e4m3(found.y, exact.y, 0.08);
  expect_e4m3(found.x_grad, exact.x_grad, 0.1);
  expect_e4m3(found.weight_grads[0], exact.weight_grads[0], 0.1);
  expect_e4m3(found.weight_grads[1], exact.weight_grads[1], 0.1);
}

// Small layers and other row counts stay in bf16.
TEST_F(Fp8Cuda, SmallLayersStayInBf16) {
  for (const auto& [N, K, M] : {std::array<int64_t, 3>{64, 256, 3584}, {24, 1024, 1024}}) {
    const LayerResult plain = run_layer(cuda(), DType::bf16, {1, N, K}, {{M, K}}, false, one_linear);
    EXPECT_TRUE(run_layer(cuda(), DType::bf16, {1, N, K}, {{M, K}}, true, one_linear).y == plain.y);
  }
}

ModelConfig wide_model(AttentionType type) {
  ModelConfig model = variant(type == AttentionType::mha ? "mha" : "egmla").model;
  model.hidden_size = 1024;
  model.intermediate_size = 1536;
  model.num_attention_heads = 8;
  model.attention.kv_lora_rank = 64;
  model.attention.qk_nope_head_dim = 128;
  model.attention.qk_rope_head_dim = 64;
  model.attention.v_head_dim = 128;
  return model;
}

TEST_F(Fp8Cuda, RecomputationKeepsEveryBit) {
  for (const AttentionType type : {AttentionType::mha, AttentionType::egmla}) {
    auto model = build(wide_model(type), cuda(), DType::bf16);
    model->set_fp8(true);
    const Batch batch = make_batch(cuda(), batch_ids(model->config(), 4, 32, 3), 4, 32, 9);
    const double loss = loss_and_gradients(*model, batch);
    const std::vector<double> gradients = doubles_of(model->parameters().grad());
    EXPECT_EQ(loss_and_gradients(*model, batch), loss);
    EXPECT_TRUE(doubles_of(model->parameters().grad()) == gradients) << "again";
    for (Recompute recompute : {Recompute::light, Recompute::full}) {
      model->set_recompute(recompute);
      EXPECT_EQ(loss_and_gradients(*model, batch), loss);
      EXPECT_TRUE(doubles_of(model->parameters().grad()) == gradients)
          << (recompute == Recompute::light ? "light" : "full");
    }
  }
}

// Thirty steps beside bf16. Weights change, and their copies with them; evaluation is bf16's.
TEST_F(Fp8Cuda, TrainingFollowsBf16) {
  for (const AttentionType type : {AttentionType::mha, AttentionType::egmla}) {
    std::vector<std::vector<double>> losses;
    for (const bool fp8 : {false, true}) {
      auto model = build(wide_model(type), cuda(), DType::bf16);
      model->set_fp8(fp8);
      AdamWOptimizer optimizer(model->parameters(), {.lr = 1e-3}, 1, 0);
      losses.emplace_back();
      for (int64_t step = 1; step <= 30; ++step) {
        const std::vector<int32_t> ids = batch_ids(model->config(), 8, 32, static_cast<uint64_t>(step % 2));
        losses.back().push_back(loss_and_gradients(*model, make_batch(cuda(), ids, 8, 32)));
        optimizer.measure_grad_norm();
        optimizer.step(1e-3, step, 1.0);
      }
      const Batch batch = make_batch(cuda(), batch_ids(model->config(), 8, 32, 0), 8, 32);
      const std::vector<double> tokens = token_losses(*model, batch);
      model->set_fp8(false);
      EXPECT_TRUE(token_losses(*model, batch) == tokens);
    }
    EXPECT_NE(losses[0], losses[1]);
    EXPECT_LT(losses[0].back(), losses[0].front() - 1);
    for (size_t i = 0; i < losses[0].size(); ++i) EXPECT_NEAR(losses[1][i], losses[0][i], 0.25) << "step " << i + 1;
  }
}

}  // namespace
}  // namespace egmla::test
