// Element by element: fill, add, convert, SwiGLU, GELU.
// T is the compute type: f32 or f64 on the CPU, f32 or bf16 on CUDA (arithmetic in f32).
#pragma once

#include "kernels/launch.h"

namespace egmla {

// out[...] = value. Any rank up to 4, strided.
struct Fill {
  static constexpr const char* kName = "fill";
  View out;
  double value = 0;
};

// out = a + b; all contiguous or all seen as [rows, C] with row strides. out may be a or b.
struct Add {
  static constexpr const char* kName = "add";
  View out, a, b;
};

// out = x converted to out's dtype; contiguous.
struct Convert {
  static constexpr const char* kName = "convert";
  View out, x;
};

// out[n, f] = silu(gate_up[n, f]) * gate_up[n, F + f]  (Shazeer 2020, SwiGLU).
struct SwigluForward {
  static constexpr const char* kName = "swiglu";
  View out;      // [N, F]
  View gate_up;  // [N, 2F]: gate, then up
};

struct SwigluBackward {
  static constexpr const char* kName = "swiglu_backward";
  View gate_up_grad;  // [N, 2F]; may be gate_up itself
  View out_grad;      // [N, F]
  View gate_up;       // [N, 2F]
  View out{};         // [N, F]: SwigluForward's result once more; undefined, or may be out_grad itself
};

// out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))  (GPT-2's GELU).
struct GeluForward {
  static constexpr const char* kName = "gelu";
  View out, x;  // [N, F]
};

struct GeluBackward {
  static constexpr const char* kName = "gelu_backward";
  View x_grad, out_grad, x;  // [N, F]; x_grad may be x or out_grad
};

inline KernelViews views_of(const Fill& k) {
  return {.written = {{"out", k.out}}, .read = {}};
}
inline KernelViews views_of(const Add& k) {
  return {.written = {{"out", k.out}}, .read = {{"a", k.a}, {"b", k.b}}};
}
inline KernelViews views_of(const Convert& k) {
  return {.written = {{"out", k.out}}, .read = {{"x", k.x}}};
}
inline KernelViews views_of(const SwigluForward& k) {
  return {.written = {{"out", k.out}}, .read = {{"gate_up", k.gate_up}}};
}
inline KernelViews views_of(const SwigluBackward& k) {
  return {.written = {{"gate_up_grad", k.gate_up_grad}, {"out", k.out}},
          .read = {{"out_grad", k.out_grad}, {"gate_up", k.gate_up}}};
}
inline KernelViews views_of(const GeluForward& k) {
  return {.written = {{"out", k.out}}, .read = {{"x", k.x}}};
}
inline KernelViews views_of(const GeluBackward& k) {
  return {.written = {{"x_grad", k.x_grad}}, .read = {{"out_grad", k.out_grad}, {"x", k.x}}};
}

EGMLA_DECLARE_KERNEL(Fill);
EGMLA_DECLARE_KERNEL(Add);
EGMLA_DECLARE_KERNEL(Convert);
EGMLA_DECLARE_KERNEL(SwigluForward);
EGMLA_DECLARE_KERNEL(SwigluBackward);
EGMLA_DECLARE_KERNEL(GeluForward);
EGMLA_DECLARE_KERNEL(GeluBackward);

}  // namespace egmla
