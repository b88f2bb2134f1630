// The catalogue of differentiable operations. Each checks shapes, allocates outputs, launches its forward kernels and
// records one closure. Activations are [B, T, C] or [N, C] (seen as [N, C] rows) unless stated; C is contiguous.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "autograd/parameter.h"
#include "autograd/tape.h"
#include "kernels/gate.h"

namespace egmla::ops {

// Token ids and their grouping by id, which makes embedding gradients deterministic. Built once per batch.
struct TokenIndex {
  Tensor ids;       // [B, T] i32
  Tensor order;     // [B T] i32: token indices sorted by id, stable
  Tensor segments;  // [U + 1] i32: starts of runs of one id in `order`
};
// `grouped` false leaves order and segments undefined: enough for inference.
TokenIndex make_token_index(Context& context, const std::vector<int32_t>& ids, int64_t B, int64_t T, bool grouped);

// [B, T] ids -> [B, T, C] rows of table [V, C].
Var embedding(Tape& tape, const TokenIndex& tokens, Parameter& table);

// x [..., K] -> x W^T [..., M], W [M, K].
Var linear(const Var& x, Parameter& weight);
// The same for a product small enough that a frugal tape computes it again in backward; one in e4m3 is kept.
Var small_linear(const Var& x, Parameter& weight);

// a + b.
Var add(const Var& a, const Var& b);

// Norms over the last axis; weight [C], bias [C]. LayerNorm where bias is given, RMSNorm where it is null.
Var norm(const Var& x, Parameter& weight, Parameter* bias, double eps);
// {x + delta, norm(x + delta)}: the residual stream and the next block's input in one pass.
std::pair<Var, Var> add_norm(const Var& x, const Var& delta, Parameter& weight, Parameter* bias, double eps);

// Cosines and sines of rotary embedding, [P, d/2].
struct RopeTable {
  Tensor cos, sin;
  bool interleave = false;
};
RopeTable make_rope_table(Context& context, int64_t positions, int64_t width, double theta, bool interleave,
                          DType dtype);
// Rotates columns [begin, begin + width of the table) of every head of x [B, T, H, d] in place; positions [B, T] i32 or
// undefined (0, 1, 2, ...). The value before the rotation must not be needed by any other op.
Var rope_in_place(const Var& x, int64_t begin, const RopeTable& table, const Tensor& positions);

// Causal attention (kernels/attention.h). q [B,Tq,H,dk+dr], k [B,Tk,Hkv,dk], v [B,Tk,Hkv,dv], k_rope [B,Tk,1,dr] or
// null. document_start [B,Tq] i32 or undefined. Returns [B, Tq, H dv].
Var attention(const Var& q, const Var& k, const Var* k_rope, const Var& v, const Tensor& document_start, double scale);

// EG-MLA's gate (kernels/gate.h): u and g [B, T, H, w], strided; weight and bias [H, w], null without a norm. They may
// be windows of a larger parameter, so that K or V is gated alone.
struct GateOptions {
  double offset = 0;
  double eps = 1e-6;
  GateActivation activation = GateActivation::none;
  GateNorm norm = GateNorm::joint;
};
// Mean and 1 / standard deviation of each token's norm, [B T, G] with G 1 or H.
struct GateMoments {
  Tensor mean, rstd;
};
Var gate(const Var& u, const Var& g, Parameter* weight, Parameter* bias, const GateOptions& options,
         GateMoments* moments = nullptr);

// x [N, 2F] = [gate | up] -> silu(gate) * up [N, F].
Var swiglu(const Var& x);
// linear(swiglu(x), weight). A frugal tape does not keep the middle: SwiGLU's backward writes it again on its way.
Var swiglu_linear(const Var& x, Parameter& weight);
// swiglu_linear(linear(x, up), down), as one where all its products run in e4m3: the inputs of the second and the
// gradients of the first then exist in e4m3 alone.
Var swiglu_ffn(const Var& x, Parameter& up, Parameter& down);
Var gelu(const Var& x);

// Part of a model as a function of its inputs; it may read parameters, and must not change an input in place.
using Region = std::function<std::vector<Var>(const std::vector<Var>&)>;
// Runs the region, keeping of it only its inputs and outputs; backward runs it again.
std::vector<Var> recompute(const std::vector<Var>& inputs, const Region& region);

// The LM head and its loss in chunks of rows: logits exist for one chunk at a time and are overwritten by their
// gradient.
struct HeadLoss {
  Var loss;          // [1]: loss_scale * sum of token losses; root of backward (its gradient is 1)
  Tensor per_token;  // [N], nats; 0 where the target is kIgnoreIndex
};
// x [B,T,C], weight [V, C], targets [B, T] i32. While recording, gradients of x and of the weight are computed at once.
HeadLoss head_loss(const Var& x, Parameter& weight, const Tensor& targets, double loss_scale, int64_t chunk_rows = 0);
// Logits of every row, [.., V], without gradient.
Tensor head_logits(const Tensor& x, Parameter& weight);

}  // namespace egmla::ops
