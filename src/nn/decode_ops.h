// Products of a decoding step, [B, K] rows against a weight: one fused kernel where they are few or on the CPU, a norm,
// a matrix product and an activation where they are many.
#pragma once

#include <optional>
#include <string>

#include "autograd/parameter.h"
#include "nn/decode_state.h"

namespace egmla {

// The input of a product: x, or rows of it by ids; plus delta; normalised.
struct DecodeInput {
  View x;              // [B, K], row stride allowed; with ids [V, K]
  View ids{};          // [B] i32 or undefined
  View delta{};        // [B, K] or undefined
  View sum{};          // [B, K]: receives x + delta (or the rows looked up); undefined: not wanted
  View norm_weight{};  // [K] or undefined: RMSNorm, LayerNorm where norm_bias is defined
  View norm_bias{};
  double eps = 1e-6;
};

// out [B, N] = input W^T, or silu(gate) * up with W [2N, K]. `name` keeps its intermediate results apart from those of
// other products in the same step. Where rows are few the product waits for the next launch(state, ...).
void decode_project(DecodeState& state, const std::string& name, const DecodeInput& input, const Parameter& weight,
                    const View& out, bool swiglu = false);

// A layer's attention (DecodeAttend): `append`; q [B, H, dk] over k [B, capacity, Hkv, dk] and v [B, capacity, Hkv, dv]
// up to state.positions into out [B, H, dv]; for MLA with the products in front of it and behind.
void decode_attend(DecodeState& state, const DecodeAppend& append, const std::optional<HeadLinear>& absorb,
                   const View& q, const View& k, const View& v, const View& out, double scale,
                   const std::optional<HeadLinear>& expand);

}  // namespace egmla
