#include "autograd/tape.h"

#include "kernels/elementwise.h"

namespace egmla {

VarId Tape::add_slot(const View& value) {
  Slot slot;
  slot.shape = value.shape;
  slot.dtype = value.dtype;
  slots_.push_back(std::move(slot));
  return static_cast<VarId>(slots_.size() - 1);
}

Var Tape::variable(const Tensor& value) {
  return {value, this, add_slot(value.view())};
}

Var Tape::output(const Tensor& value, Activation::Rebuild rebuild) {
  Var out{value, this, recording() ? add_slot(value.view()) : kNoGrad};
  if (frugal_ && rebuild) out.again = Activation(std::move(rebuild));
  return out;
}

void Tape::record(const char* op, Backward backward) {
  nodes_.push_back({op, std::move(backward)});
  names_.push_back(op);
}

std::vector<Var> Tape::windows(const Var& x, const std::vector<Window>& windows) {
  std::vector<Var> parts;
  std::vector<VarId> ids;
  int64_t covered = 0;
  for (const Window& window : windows) {
    const View view = window(x.view());
    covered += view.elements();
    Var part{x.value.with_view(view), this, kNoGrad};
    if (x.again.defined())
      part.again = Activation([x = x.again, window] { return x.get().with_view(window(x.view())); });
    if (x.id != kNoGrad) {
      part.id = add_slot(view);
      slots_[index(part.id)].parent = x.id;
      slots_[index(part.id)].window = window;
      ids.push_back(part.id);
    }
    parts.push_back(std::move(part));
  }
  check(covered == x.view().elements(), "windows: {} elements of {} covered", covered, x.shape().text());
  if (x.id == kNoGrad) return parts;
  record("windows", [ids, parent = x.id](Tape& tape) {
    bool any = false;
    for (VarId id : ids) any = any || tape.has(id);
    if (!any) return;
    for (VarId id : ids) {
      if (!tape.has(id))
        tape.write(id, [&](const View& grad) { launch(tape.context(), Fill{.out = grad, .value = 0}); });
      tape.take(id);
    }
    tape.slots_[index(parent)].filled = true;
  });
  return parts;
}

Tensor Tape::take(VarId id) {
  Slot& slot = slots_[index(id)];
  check(slot.filled, "tape: no gradient to take");
  slot.filled = false;
  return std::exchange(slot.grad, Tensor{});
}

Tensor& Tape::buffer(VarId id) {
  Slot& slot = slots_[index(id)];
  if (slot.grad.defined()) return slot.grad;
  if (slot.parent != kNoGrad) {
    const Tensor& whole = buffer(slot.parent);
    slot.grad = whole.with_view(slot.window(whole.view()));
  } else {
    slot.grad = Tensor::empty(*context_, slot.shape, slot.dtype);
  }
  return slot.grad;
}

void Tape::write(VarId id, const std::function<void(const View&)>& fill) {
  if (id == kNoGrad) return;
  if (slots_[index(id)].filled) {
    const Tensor extra = Tensor::empty(*context_, slots_[index(id)].shape, slots_[index(id)].dtype);
    fill(extra.view());
    return add_to(id, extra);
  }
  fill(buffer(id).view());
  slots_[index(id)].filled = true;
}

void Tape::give(VarId id, const Tensor& grad) {
  if (id == kNoGrad) return;
  Slot& slot = slots_[index(id)];
  if (slot.filled) return add_to(id, grad);
  if (slot.parent != kNoGrad) {
    launch(*context_, Fill{.out = buffer(id).view(), .value = 0});
    slot.filled = true;
    return add_to(id, grad);
  }
  slot.grad = grad;
  slot.filled = true;
}

void Tape::add_to(VarId id, const Tensor& grad) {
  Slot& slot = slots_[index(id)];
  const bool in_place = slot.parent != kNoGrad || slot.grad.unique();
  Tensor sum = in_place ? slot.grad : Tensor::empty(*context_, slot.shape, slot.dtype);
  launch(*context_, Add{.out = sum.view(), .a = slot.grad.view(), .b = grad.view()});
  slot.grad = sum;
}

void Tape::backward(const Var& root, const Tensor& seed) {
  check(recording() && root.id != kNoGrad, "tape: backward needs a recorded result");
  if (seed.defined()) return backward({{root, seed}});
  slots_[index(root.id)].filled = true;
  backward(std::vector<std::pair<Var, Tensor>>{});
}

void Tape::backward(const std::vector<std::pair<Var, Tensor>>& roots) {
  for (const auto& [root, seed] : roots) give(root.id, seed);
  while (!nodes_.empty()) {
    const Node node = std::move(nodes_.back());
    nodes_.pop_back();
    const OpScope scope(*context_, node.op);
    node.backward(*this);
  }
  for (const std::function<void()>& work : std::exchange(postponed_, {})) work();
}

void Tape::run_or_postpone(std::function<void()> work) {
  // The running node is no longer among nodes_, so their number is its place.
  if (nodes_.size() >= postponed_before_) return work();
  postponed_.push_back(std::move(work));
}

}  // namespace egmla
