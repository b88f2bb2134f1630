// Shape: up to five extents, row-major, a plain value.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/check.h"

namespace egmla {

constexpr int kMaxRank = 5;

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> extents) {
    check(extents.size() <= kMaxRank, "shape: rank {} exceeds {}", extents.size(), kMaxRank);
    for (int64_t extent : extents) extents_[static_cast<size_t>(rank_++)] = extent;
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return extents_[index(i)]; }
  int64_t& operator[](int i) { return extents_[index(i)]; }
  int64_t back() const { return (*this)[rank_ - 1]; }

  // Product of all extents; 1 for a scalar.
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= extents_[static_cast<size_t>(i)];
    return n;
  }

  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int i = 0; i < rank_; ++i) {
      if ((*this)[i] != other[i]) return false;
    }
    return true;
  }

  // "[4,128,768]"
  std::string text() const { return fmt::format("[{}]", fmt::join(extents_.begin(), extents_.begin() + rank_, ",")); }

 private:
  // Negative indices count from the end.
  size_t index(int i) const { return static_cast<size_t>(i < 0 ? i + rank_ : i); }

  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

}  // namespace egmla
