// A forward value as backward will need it: kept, or computed again when first asked for. Whoever still holds it then
// shares that one result; what it was computed from is let go at once.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "core/tensor.h"

namespace egmla {

class Activation {
 public:
  using Rebuild = std::function<Tensor()>;

  Activation() = default;
  explicit Activation(const Tensor& kept) : cell_(std::make_shared<Cell>(Cell{kept, {}})) {}
  explicit Activation(Rebuild rebuild) : cell_(std::make_shared<Cell>(Cell{{}, std::move(rebuild)})) {}

  bool defined() const { return cell_ != nullptr; }
  // The value. It stays until the last copy of this activation is gone.
  const Tensor& get() const {
    if (!cell_->value.defined()) {
      cell_->value = cell_->rebuild();
      cell_->rebuild = nullptr;
    }
    return cell_->value;
  }
  const View& view() const { return get().view(); }

 private:
  struct Cell {
    Tensor value;
    Rebuild rebuild;
  };
  std::shared_ptr<Cell> cell_;
};

}  // namespace egmla
