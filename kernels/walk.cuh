// Walk: the way through several views of one shape at once, packet by packet. Axes that continue each other in every
// view are joined, so contiguous tensors become one long row whatever their shape.
#pragma once

#include <array>

#include "kernels/cuda_utils.cuh"

namespace egmla::gpu {

constexpr int kWalkAxes = 3;  // row axes that remain after joining; with the columns, rank 4
constexpr int kWalkThreads = 256;

template <int kViews>
struct Walk {
  int64_t columns = 0;
  uint32_t packets = 0;                     // in a row
  uint32_t items = 0;                       // packets in all rows
  uint32_t extents[kWalkAxes] = {1, 1, 1};  // row axes, outermost first
  int64_t strides[kViews][kWalkAxes] = {};  // in elements
  bool wide = false;

  // Where packet `item` stands in each view; returns how many of its elements exist.
  __device__ int at(uint32_t item, int64_t (&offsets)[kViews]) const {
    uint32_t row = item / packets;
    const uint32_t packet = item - row * packets;
    const int64_t column = int64_t{packet} * kPacket;
#pragma unroll
    for (int v = 0; v < kViews; ++v) offsets[v] = column;
#pragma unroll
    for (int axis = kWalkAxes - 1; axis >= 0; --axis) {
      if (extents[axis] == 1) continue;
      const uint32_t rest = row / extents[axis], index = row - rest * extents[axis];
#pragma unroll
      for (int v = 0; v < kViews; ++v) offsets[v] += index * strides[v][axis];
      row = rest;
    }
    return static_cast<int>(min(int64_t{kPacket}, columns - column));
  }

  unsigned blocks() const {
    return static_cast<unsigned>(ceil_div(items, kWalkThreads));
  }
};

// Views of one shape, or of one size whose leading axes collapse into rows.
template <int kViews>
Walk<kViews> make_walk(const char* kernel, std::array<View, kViews> views) {
  bool same = true;
  for (const View& view : views) same = same && view.shape == views[0].shape;
  for (View& view : views) {
    if (!same) view = view.as_matrix();
    check(view.shape == views[0].shape, "{}: shapes must agree; found {} and {}", kernel, views[0].shape.text(),
          view.shape.text());
  }
  Walk<kViews> walk;
  const Shape shape = views[0].shape;
  walk.columns = shape.rank() ? shape.back() : 1;
  int axis = shape.rank() - 2;
  const auto continues = [&](int64_t inner_extent, auto inner_stride) {
    for (const View& view : views) {
      if (view.stride(axis) != inner_extent * inner_stride(view)) return false;
    }
    return true;
  };
  while (axis >= 0 && (shape[axis] == 1 || continues(walk.columns, [](const View&) { return int64_t{1}; })))
    walk.columns *= shape[axis--];
  for (int slot = kWalkAxes - 1; axis >= 0; --slot) {
    check(slot >= 0, "{}: {} has too many axes that do not join", kernel, shape.text());
    const int inner = axis;
    walk.extents[slot] = static_cast<uint32_t>(shape[axis]);
    for (int v = 0; v < kViews; ++v) walk.strides[v][slot] = views[static_cast<size_t>(v)].stride(axis);
    --axis;
    while (axis >= 0 &&
           (shape[axis] == 1 || continues(walk.extents[slot], [&](const View& view) { return view.stride(inner); })))
      walk.extents[slot] *= static_cast<uint32_t>(shape[axis--]);
  }
  walk.wide = true;
  for (int v = 0; v < kViews; ++v) {
    const View& view = views[static_cast<size_t>(v)];
    uintptr_t bits = reinterpret_cast<uintptr_t>(view.data);
    for (int64_t stride : walk.strides[v]) bits |= static_cast<uintptr_t>(stride) * size_of(view.dtype);
    walk.wide = walk.wide && bits % 16 == 0;
  }
  const int64_t rows = int64_t{walk.extents[0]} * walk.extents[1] * walk.extents[2],
                packets = ceil_div(walk.columns, kPacket);
  check(rows * packets < int64_t{1} << 31, "{}: {} is too large", kernel, shape.text());
  walk.packets = static_cast<uint32_t>(packets);
  walk.items = static_cast<uint32_t>(rows * packets);
  return walk;
}

}  // namespace egmla::gpu
