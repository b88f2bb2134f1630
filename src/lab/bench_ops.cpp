#include "lab/bench_ops.h"

#include <deque>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gate.h"
#include "kernels/norm.h"
#include "kernels/quantize.h"
#include "kernels/rope.h"
#include "lab/bench_tools.h"
#include "ops/ops.h"

namespace egmla {
namespace {

// The kernels of one size. Operands of a group live until the next group.
class OpBench {
 public:
  OpBench(Context& context, DType compute, const OpSizes& sizes, OpReport& report)
      : context_(context), compute_(compute), sizes_(sizes), report_(report), N_(sizes.B * sizes.T) {}

  void run() {
    norms();
    gates();
    rotations();
    feed_forwards();
    if (compute_ == DType::bf16) quantisers();
    loss();
    embeddings();
    optimizer();
  }

 private:
  View values(const Shape& shape) { return keep(random_tensor(context_, shape, compute_)); }
  // Statistics, tables and gradients of weights.
  View singles(const Shape& shape) { return keep(random_tensor(context_, shape, DType::f32)); }
  View keep(const Tensor& tensor) { return memory_.emplace_back(tensor).view(); }

  template <class Kernel>
  void time(const char* op, const Kernel& kernel) {
    const double seconds = seconds_of(context_, [&] { launch(context_, kernel); });
    const double rate = 1e-9 * static_cast<double>(bytes_of(kernel)) / seconds;
    report_.rows.push_back({sizes_.name, op, 1e3 * seconds, rate, rate / report_.copy_gb_per_s});
  }

  void norms();
  void gates();
  void rotations();
  void feed_forwards();
  void quantisers();
  void loss();
  void embeddings();
  void optimizer();

  Context& context_;
  DType compute_;
  const OpSizes& sizes_;
  OpReport& report_;
  int64_t N_;
  std::deque<Tensor> memory_;
};

void OpBench::norms() {
  const int64_t D = sizes_.D;
  const View x = values({N_, D}), residual = values({N_, D}), out = values({N_, D}), sum = values({N_, D});
  const View weight = values({D}), bias = values({D}), mean = singles({N_}), rstd = singles({N_});
  const View weight_grad = singles({D}), bias_grad = singles({D});
  time("rms_norm",
       RmsNormForward{.out = out, .rstd = rstd, .residual_out = {}, .x = x, .residual = {}, .weight = weight});
  time("add + rms_norm",
       RmsNormForward{.out = out, .rstd = rstd, .residual_out = sum, .x = x, .residual = residual, .weight = weight});
  time("rms_norm_backward", RmsNormBackward{.x_grad = sum,
                                            .weight_grad = weight_grad,
                                            .partials = singles({kNormPartials, D}),
                                            .out_grad = out,
                                            .residual_grad = residual,
                                            .x = x,
                                            .rstd = rstd,
                                            .weight = weight});
  time("layer_norm", LayerNormForward{.out = out,
                                      .mean = mean,
                                      .rstd = rstd,
                                      .residual_out = {},
                                      .x = x,
                                      .residual = {},
                                      .weight = weight,
                                      .bias = bias});
  time("layer_norm_backward", LayerNormBackward{.x_grad = sum,
                                                .weight_grad = weight_grad,
                                                .bias_grad = bias_grad,
                                                .partials = singles({kNormPartials, 2, D}),
                                                .out_grad = out,
                                                .residual_grad = residual,
                                                .x = x,
                                                .mean = mean,
                                                .rstd = rstd,
                                                .weight = weight});
  memory_.clear();
}

void OpBench::gates() {
  const int64_t H = sizes_.H, width = sizes_.dn + sizes_.dv;
  const Shape shape = {N_, H, width}, features = {H, width};
  const View u = values(shape), g = values(shape), out = values(shape), g_grad = values(shape);
  const View weight = values(features), bias = values(features), mean = singles({N_}), rstd = singles({N_});
  time("gate", GateForward{.out = out, .mean = mean, .rstd = rstd, .u = u, .g = g, .weight = weight, .bias = bias});
  time("gate_backward", GateBackward{.u_grad = values(shape),
                                     .g_grad = g_grad,
                                     .weight_grad = singles(features),
                                     .bias_grad = singles(features),
                                     .partials = singles({kNormPartials, 2, H * width}),
                                     .out_grad = out,
                                     .u = u,
                                     .g = g,
                                     .mean = mean,
                                     .rstd = rstd,
                                     .weight = weight});
  memory_.clear();
}

void OpBench::rotations() {
  const View q = values({sizes_.B, sizes_.T, sizes_.H, sizes_.dn + sizes_.dr});
  const View cos = singles({sizes_.T, sizes_.dr / 2}), sin = singles({sizes_.T, sizes_.dr / 2});
  launch(context_, Fill{.out = cos, .value = 0.6});  // a true rotation, or the values would grow from run to run
  launch(context_, Fill{.out = sin, .value = 0.8});
  time("rope", Rope{.x = q.columns(sizes_.dn, sizes_.dr), .cos = cos, .sin = sin, .positions = {}, .interleave = true});
  memory_.clear();
}

void OpBench::feed_forwards() {
  const int64_t F = sizes_.F;
  const View gate_up = values({N_, 2 * F}), gate_up_grad = values({N_, 2 * F}), out = values({N_, F}),
             x = values({N_, F}), x_grad = values({N_, F});
  time("swiglu", SwigluForward{.out = out, .gate_up = gate_up});
  time("swiglu_backward", SwigluBackward{.gate_up_grad = gate_up_grad, .out_grad = out, .gate_up = gate_up});
  time("gelu", GeluForward{.out = out, .x = x});
  time("gelu_backward", GeluBackward{.x_grad = x_grad, .out_grad = out, .x = x});
  time("add", Add{.out = x_grad, .a = out, .b = x});
  memory_.clear();
}

// Copies of activations and gradients, and of a weight.
void OpBench::quantisers() {
  const int64_t D = sizes_.D, F = sizes_.F;
  const auto copies = [&](int64_t R, int64_t C, bool square) {
    const auto bytes = [&](const Shape& shape) { return keep(Tensor::empty(context_, shape, DType::e4m3)); };
    return QuantizedViews{.rows = bytes({R, fp8_padded(C)}),
                          .row_scales = singles(fp8_scale_shape(R, C, square)),
                          .columns = bytes({C, fp8_padded(R)}),
                          .column_scales = singles(fp8_scale_shape(C, R, square)),
                          .square = square};
  };
  time("quantize", Quantize{.out = copies(N_, D, false), .x = values({N_, D})});
  time("quantize weight", Quantize{.out = copies(2 * F, D, true), .x = values({2 * F, D})});
  const View gate_up = values({N_, 2 * F}), out_grad = values({N_, F});
  time("quantize_swiglu", QuantizeSwiglu{.out = copies(N_, F, false), .gate_up = gate_up});
  time("quantize_swiglu_backward",
       QuantizeSwigluBackward{.out = copies(N_, 2 * F, false), .out_grad = out_grad, .gate_up = gate_up});
  memory_.clear();
}

void OpBench::loss() {
  const int64_t rows = sizes_.logit_rows;
  const View targets = keep(random_tensor(context_, {rows}, DType::i32));
  time("cross_entropy", CrossEntropy{.loss = singles({rows}),
                                     .logits = values({rows, sizes_.V}),
                                     .targets = targets,
                                     .grad_scale = 1.0,
                                     .write_grad = true});
  memory_.clear();
}

void OpBench::embeddings() {
  std::vector<int32_t> ids(static_cast<size_t>(N_));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(uniform(1, i) * static_cast<double>(sizes_.V));
  const ops::TokenIndex tokens = ops::make_token_index(context_, ids, sizes_.B, sizes_.T, true);
  const View flat = make_view(tokens.ids.view().data, {N_}, DType::i32);
  time("embedding",
       EmbeddingForward{.out = values({N_, sizes_.D}), .table = values({sizes_.V, sizes_.D}), .ids = flat});
  time("embedding_backward", EmbeddingBackward{.table_grad = singles({sizes_.V, sizes_.D}),
                                               .out_grad = values({N_, sizes_.D}),
                                               .ids = flat,
                                               .order = tokens.order.view(),
                                               .segments = tokens.segments.view()});
  memory_.clear();
}

void OpBench::optimizer() {
  const Shape shape = {sizes_.parameters};
  const View grad = singles(shape), norm = singles({1}), partials = singles({kSquareSumPartials});
  time("square_sum", SquareSum{.partials = partials, .x = grad});
  launch(context_, SquareSum{.partials = partials, .x = grad});
  launch(context_, GradNorm{.norm = norm, .partials = partials});
  const View exp_avg_sq = singles(shape);
  launch(context_, Fill{.out = exp_avg_sq, .value = 1});
  time("adamw", AdamW{.master = singles(shape),
                      .exp_avg = singles(shape),
                      .exp_avg_sq = exp_avg_sq,
                      .working = compute_ == DType::bf16 ? values(shape) : View{},
                      .grad = grad,
                      .grad_norm = norm,
                      .max_norm = 1,
                      .lr = 1e-4,
                      .weight_decay = 0.1});
  memory_.clear();
}

}  // namespace

OpSizes op_sizes(const std::string& name) {
  if (name == "124m")
    return {.name = name,
            .B = 32,
            .T = 1024,
            .D = 768,
            .F = 2048,
            .H = 12,
            .V = 50304,
            .dn = 64,
            .dr = 32,
            .dv = 64,
            .logit_rows = 4096,
            .parameters = int64_t{1} << 27};
  if (name == "1b")
    return {.name = name,
            .B = 8,
            .T = 2048,
            .D = 1792,
            .F = 4864,
            .H = 14,
            .V = 50304,
            .dn = 128,
            .dr = 64,
            .dv = 128,
            .logit_rows = 4096,
            .parameters = int64_t{1} << 28};
  check_usage(name == "small", "bench ops: found size '{}'; expected 124m, 1b or small", name);
  return {.name = name,
          .B = 2,
          .T = 256,
          .D = 256,
          .F = 704,
          .H = 4,
          .V = 4096,
          .dn = 64,
          .dr = 32,
          .dv = 64,
          .logit_rows = 256,
          .parameters = int64_t{1} << 20};
}

OpReport bench_ops(Context& context, DType compute, const std::vector<OpSizes>& sizes) {
  OpReport report{context.name(), name_of(compute), 1e-9 * copy_bandwidth(context), {}};
  for (const OpSizes& size : sizes) OpBench(context, compute, size, report).run();
  return report;
}

std::string op_report_text(const OpReport& report) {
  std::string out = fmt::format("{}, {}: a copy moves {:.1f} GB/s\n{:<6} {:<20} {:>10} {:>10} {:>8}\n", report.device,
                                report.dtype, report.copy_gb_per_s, "size", "kernel", "ms", "GB/s", "of copy");
  for (const OpTiming& row : report.rows)
    out += fmt::format("{:<6} {:<20} {:>10.4f} {:>10.1f} {:>7.0f}%\n", row.size, row.op, row.ms, row.gb_per_s,
                       100 * row.of_copy);
  return out;
}

std::string op_report_json(const OpReport& report) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const OpTiming& row : report.rows)
    rows.push_back(
        {{"size", row.size}, {"op", row.op}, {"ms", row.ms}, {"gb_per_s", row.gb_per_s}, {"of_copy", row.of_copy}});
  const nlohmann::ordered_json out = {
      {"device", report.device}, {"dtype", report.dtype}, {"copy_gb_per_s", report.copy_gb_per_s}, {"rows", rows}};
  return out.dump(2) + "\n";
}

}  // namespace egmla
