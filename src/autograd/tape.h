// The tape: a vector of nodes in the order ops ran; backward is one reverse loop that drops each node once consumed.
// The tape alone adds up activation gradients. It lives for one micro-step; an inference tape records nothing.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/activation.h"
#include "autograd/parameter.h"
#include "core/tensor.h"

namespace egmla {

class Tape;
using VarId = int32_t;
constexpr VarId kNoGrad = -1;

// A tensor on a tape. `id` names its gradient; kNoGrad for constants. `again` is defined where backward computes the
// value again.
struct Var {
  Tensor value;
  Tape* tape = nullptr;
  VarId id = kNoGrad;
  Activation again{};

  // The value for a backward closure to hold.
  Activation activation() const { return again.defined() ? again : Activation(value); }

  const Shape& shape() const { return value.shape(); }
  const View& view() const { return value.view(); }
  Context& context() const { return value.context(); }
};

class Tape {
 public:
  enum class Mode { record, inference };
  // A backward closure reads the gradients of its outputs with take() and hands on those of its inputs with write() or
  // give().
  using Backward = std::function<void(Tape&)>;
  // A window onto a tensor, applied alike to a value and to its gradient.
  using Window = std::function<View(const View&)>;

  explicit Tape(Context& context, Mode mode = Mode::record)
      : context_(&context), mode_(mode), counts_uses_(mode == Mode::record) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  bool recording() const { return mode_ == Mode::record; }
  Context& context() const { return *context_; }
  // A frugal tape does not keep results that are cheap to compute again. Set before the first op.
  void set_frugal(bool frugal) { frugal_ = frugal; }
  bool frugal() const { return frugal_; }
  // Whether large products run in e4m3 (src/ops/fp8.h). Set before the first op.
  void set_fp8(bool fp8) { fp8_ = fp8; }
  bool fp8() const { return fp8_; }

  // An op is about to read a parameter, and its backward, if any, will write the gradient and end the use.
  void use(Parameter& parameter) {
    if (parameter.observer) parameter.observer->before_read(parameter);
    if (counts_uses_) ++parameter.uses;
  }
  // What is recorded later counts already when it first runs; its second run does not.
  void set_counts_uses(bool counts) { counts_uses_ = counts; }
  bool counts_uses() const { return counts_uses_; }

  // A leaf without gradient, and one whose gradient is kept after backward (grad_of).
  Var constant(const Tensor& value) { return {value, this, kNoGrad}; }
  Var variable(const Tensor& value);
  // An op's result. On an inference tape it is a constant. `rebuild` computes the same bits again, for frugal tapes.
  Var output(const Tensor& value, Activation::Rebuild rebuild = {});

  // Appends a node. `op` is the op's name in errors, profiles and test coverage.
  void record(const char* op, Backward backward);
  // Windows onto x whose gradients are windows onto one gradient of x; together they must cover x once.
  std::vector<Var> windows(const Var& x, const std::vector<Window>& windows);

  // On a tape that postpones, the weight gradients of what is recorded so far (run_or_postpone) are computed when all
  // else of backward is launched: other gradients are exchanged meanwhile.
  void set_postpones(bool postpones) { postpones_ = postpones; }
  void postpone_weights_so_far() { postponed_before_ = postpones_ ? nodes_.size() : 0; }

  // Runs the tape backward from `root` with gradient `seed` (undefined: the root's op has scaled its gradient itself).
  void backward(const Var& root, const Tensor& seed = {});
  // The same from several roots at once.
  void backward(const std::vector<std::pair<Var, Tensor>>& roots);

  // For closures. has(id): some later op gave a gradient. take(id): the gradient, removed from the tape.
  bool has(VarId id) const { return id != kNoGrad && slots_[index(id)].filled; }
  Tensor take(VarId id);
  // The gradient left in place, for ops that change a value in place.
  const Tensor& peek(VarId id) const { return slots_[index(id)].grad; }
  // Calls fill(View) with memory to overwrite with the gradient of `id`; nothing happens for constants.
  void write(VarId id, const std::function<void(const View&)>& fill);
  // Hands over a whole gradient tensor; two variables may be given the same one.
  void give(VarId id, const Tensor& grad);

  // Runs `work` now, or at the end of backward where this node is one of postpone_weights_so_far().
  void run_or_postpone(std::function<void()> work);

  // The gradient of a leaf after backward; undefined when nothing reached it.
  Tensor grad_of(const Var& leaf) const { return slots_[index(leaf.id)].grad; }
  // Names of the recorded ops, in order; kept when nodes are dropped.
  const std::vector<const char*>& op_names() const { return names_; }

 private:
  struct Slot {
    Shape shape;
    DType dtype = DType::f32;
    Tensor grad;
    bool filled = false;
    VarId parent = kNoGrad;  // windows: whose gradient this one is a part of
    Window window;
  };
  struct Node {
    const char* op;
    Backward backward;
  };

  static size_t index(VarId id) { return static_cast<size_t>(id); }
  VarId add_slot(const View& value);
  Tensor& buffer(VarId id);  // the memory of a gradient, allocated on first use
  void add_to(VarId id, const Tensor& grad);

  Context* context_;
  Mode mode_;
  bool frugal_ = false;
  bool fp8_ = false;
  bool counts_uses_;
  std::vector<Slot> slots_;
  std::vector<Node> nodes_;
  std::vector<const char*> names_;
  bool postpones_ = false;
  size_t postponed_before_ = 0;  // nodes
  std::vector<std::function<void()>> postponed_;
};

}  // namespace egmla
