// Attention on the CPU: one task per (batch, head), backward (batch, key head); tiles of queries against all keys they
// may see. Keys (with the shared rope part below them) and, backward, values are transposed once a task, so that scores
// are vectors of keys. Scores of one tile live in a thread's scratch; the T x T matrix never exists. Backward rebuilds
// the tile from lse.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_hopper_space.h"
#include "kernels/cpu_utils.h"
#include "kernels/tile_product_cpu.h"

namespace egmla {
namespace {

constexpr int64_t kRows = 64;  // queries in a tile

using cpu::kTileRows;
using cpu::multiply_tile;

// One head of one sequence of a [B, T, heads, width] view.
template <class T>
struct Head {
  T* data = nullptr;
  int64_t stride = 0;  // between positions
  Head() = default;
  Head(const View& view, int64_t b, int64_t h)
      : data(view.as<T>() + b * view.stride(0) + h * view.stride(2)), stride(view.stride(1)) {}
  T* row(int64_t t) const { return data + t * stride; }
};

// Keys seen by the tile's queries [i0, i0 + rows): [first, first + count).
struct KeyRange {
  int64_t first, count;
};

template <class T, class Kernel>
struct Problem {
  const Kernel& k;
  int64_t Tq = k.q.size(1), Tk = k.k.size(1), H = k.q.size(2), dk = k.k.size(3), dv = k.v.size(3);
  int64_t group = H / k.k.size(2), dr = k.k_rope.defined() ? k.k_rope.size(3) : 0, shift = Tk - Tq;
  const int32_t* document_start = k.document_start.defined() ? k.document_start.template as<int32_t>() : nullptr;

  // The first key that query i of sequence b may see, and one past the last.
  int64_t first_key(int64_t b, int64_t i) const { return document_start ? document_start[b * Tq + i] : 0; }
  int64_t end_key(int64_t i) const { return i + shift + 1; }

  KeyRange keys(int64_t b, int64_t i0, int64_t rows) const {
    const int64_t first = first_key(b, i0);  // starts never decrease along a sequence
    return {first, end_key(i0 + rows - 1) - first};
  }
  // One past the last key that any of the rows [i, i + rows) sees.
  int64_t end_of(int64_t i, int64_t rows) const { return end_key(i + rows - 1); }
};

// out [width, length]: a head's rows, transposed.
template <class T>
void transpose(const Head<T>& head, int64_t length, int64_t width, T* out) {
  constexpr int64_t kBlock = 16;
  for (int64_t t0 = 0; t0 < length; t0 += kBlock) {
    const int64_t end = std::min(length, t0 + kBlock);
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t t = t0; t < end; ++t) out[c * length + t] = head.row(t)[c];
    }
  }
}

// Calls function(r, rows) for the blocks of a tile's rows.
template <class F>
void for_blocks(int64_t rows, F&& function) {
  for (int64_t r = 0; r < rows; r += kTileRows) function(r, std::min(kTileRows, rows - r));
}

// score[r, j] = alpha x_i y_j for the rows i = i0 + r of a tile and the keys range.first + j that its block of rows
// sees; y transposed, [width, Tk].
template <class T, class P>
void multiply_scores(const P& p, T* score, T alpha, const Head<T>& x, const T* y, int64_t width, int64_t i0,
                     int64_t rows, KeyRange range) {
  for_blocks(rows, [&](int64_t r, int64_t count) {
    multiply_tile<T>(count, p.end_of(i0 + r, count) - range.first, width, alpha, {x.row(i0 + r), x.stride, 1},
                     y + range.first, p.Tk, score + r * range.count, range.count, false);
  });
}

// out_i = sum over j of score[r, j] y_j.
template <class T, class P>
void multiply_keys(const P& p, const Head<T>& out, int64_t column, const T* score, const Head<T>& y, int64_t width,
                   int64_t i0, int64_t rows, KeyRange range) {
  for_blocks(rows, [&](int64_t r, int64_t count) {
    multiply_tile<T>(count, width, p.end_of(i0 + r, count) - range.first, T(1),
                     {score + r * range.count, range.count, 1}, y.row(range.first), y.stride, out.row(i0 + r) + column,
                     out.stride, false);
  });
}

// out_j += sum over the tile's rows i of score[r, j] x_i.
template <class T, class P>
void add_to_keys(const P& p, T* out, int64_t out_row, const T* score, const T* x, int64_t x_row, int64_t width,
                 int64_t i0, int64_t rows, KeyRange range) {
  for_blocks(range.count, [&](int64_t j, int64_t count) {
    // Rows before the first that sees key range.first + j hold zeros there.
    const int64_t from = std::clamp<int64_t>(range.first + j - p.shift - i0, 0, rows);
    multiply_tile<T>(count, width, rows - from, T(1), {score + from * range.count + j, 1, range.count},
                     x + from * x_row, x_row, out + (range.first + j) * out_row, out_row, true);
  });
}

// Keys of a key head with the rope part below them, transposed: [dk + dr, Tk].
template <class T, class P>
void transpose_keys(const P& p, int64_t b, int64_t kv_head, T* out) {
  transpose(Head<T>(p.k.k, b, kv_head), p.Tk, p.dk, out);
  if (p.dr) transpose(Head<T>(p.k.k_rope, b, 0), p.Tk, p.dr, out + p.dk * p.Tk);
}

template <class T>
void forward_head(const AttentionForward& k, const Problem<T, AttentionForward>& p, int64_t b, int64_t h, const T* keys,
                  T* score) {
  const Head<T> q(k.q, b, h), value(k.v, b, h / p.group), out(k.out, b, h);
  T* const lse = k.lse.as<T>() + (b * p.H + h) * p.Tq;
  for (int64_t i0 = 0; i0 < p.Tq; i0 += kRows) {
    const int64_t rows = std::min(kRows, p.Tq - i0);
    const KeyRange range = p.keys(b, i0, rows);
    multiply_scores(p, score, static_cast<T>(k.scale), q, keys, p.dk + p.dr, i0, rows, range);
    for (int64_t r = 0; r < rows; ++r) {
      T* s = score + r * range.count;
      const int64_t begin = p.first_key(b, i0 + r) - range.first, end = p.end_key(i0 + r) - range.first;
      T largest = s[begin];
#pragma omp simd reduction(max : largest)
      for (int64_t j = begin; j < end; ++j) largest = s[j] > largest ? s[j] : largest;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = begin; j < end; ++j) {
        s[j] = cpu::exp_of(s[j] - largest);
        sum += s[j];
      }
      lse[i0 + r] = largest + std::log(sum);
      const T inverse = T(1) / sum;
#pragma omp simd
      for (int64_t j = begin; j < end; ++j) s[j] *= inverse;
      std::fill(s, s + begin, T(0));
      std::fill(s + end, s + range.count, T(0));
    }
    multiply_keys(p, out, 0, score, value, p.dv, i0, rows, range);
  }
}

template <class T>
void forward(const AttentionForward& k) {
  const Problem<T, AttentionForward> p{k};
  const int64_t tasks = k.q.size(0) * p.H;
#pragma omp parallel if (tasks * p.Tq * p.Tk > 4096)
  {
    std::vector<T> score(static_cast<size_t>(kRows * p.Tk)), keys(static_cast<size_t>((p.dk + p.dr) * p.Tk));
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t b = task / p.H, h = task % p.H;
      transpose_keys(p, b, h / p.group, keys.data());
      forward_head<T>(k, p, b, h, keys.data(), score.data());
    }
  }
}

// Gradients of one query head; key and value gradients are overwritten when `first` (of its group), added to otherwise.
template <class T>
void backward_head(const AttentionBackward& k, const Problem<T, AttentionBackward>& p, int64_t b, int64_t h, bool first,
                   const T* keys, const T* values, T* score, T* dscore) {
  const Head<T> q(k.q, b, h), key(k.k, b, h / p.group), out(k.out, b, h), dout(k.out_grad, b, h);
  const Head<T> dq(k.q_grad, b, h), dkey(k.k_grad, b, h / p.group), dvalue(k.v_grad, b, h / p.group);
  const Head<T> rope = p.dr ? Head<T>(k.k_rope, b, 0) : Head<T>();
  const int64_t row0 = (b * p.H + h) * p.Tq;
  const T* lse = k.lse.as<T>() + row0;
  T* delta = k.delta.as<T>() + row0;
  T* drope = p.dr ? k.workspace.as<T>() + row0 * p.dr : nullptr;  // this head's share, [T, dr]
  if (first) {
    for (int64_t t = 0; t < p.Tk; ++t) {
      std::fill(dkey.row(t), dkey.row(t) + p.dk, T(0));
      std::fill(dvalue.row(t), dvalue.row(t) + p.dv, T(0));
    }
  }
  std::fill(drope, drope + (drope ? p.Tk * p.dr : 0), T(0));
  for (int64_t i0 = 0; i0 < p.Tq; i0 += kRows) {
    const int64_t rows = std::min(kRows, p.Tq - i0);
    const KeyRange range = p.keys(b, i0, rows);
    multiply_scores(p, score, static_cast<T>(k.scale), q, keys, p.dk + p.dr, i0, rows, range);
    multiply_scores(p, dscore, T(1), dout, values, p.dv, i0, rows, range);
    for (int64_t r = 0; r < rows; ++r) {
      T* s = score + r * range.count;
      T* ds = dscore + r * range.count;
      const int64_t begin = p.first_key(b, i0 + r) - range.first, end = p.end_key(i0 + r) - range.first;
      T dot = 0;
      for (int64_t c = 0; c < p.dv; ++c) dot += out.row(i0 + r)[c] * dout.row(i0 + r)[c];
      delta[i0 + r] = dot;
      const T shift = lse[i0 + r], scale = static_cast<T>(k.scale);
#pragma omp simd
      for (int64_t j = begin; j < end; ++j) {
        s[j] = cpu::exp_of(s[j] - shift);
        ds[j] = s[j] * (ds[j] - dot) * scale;
      }
      std::fill(s, s + begin, T(0));
      std::fill(s + end, s + range.count, T(0));
      std::fill(ds, ds + begin, T(0));
      std::fill(ds + end, ds + range.count, T(0));
    }
    add_to_keys(p, dvalue.data, dvalue.stride, score, dout.row(i0), dout.stride, p.dv, i0, rows, range);
    add_to_keys(p, dkey.data, dkey.stride, dscore, q.row(i0), q.stride, p.dk, i0, rows, range);
    multiply_keys(p, dq, 0, dscore, key, p.dk, i0, rows, range);
    if (!p.dr) continue;
    add_to_keys(p, drope, p.dr, dscore, q.row(i0) + p.dk, q.stride, p.dr, i0, rows, range);
    multiply_keys(p, dq, p.dk, dscore, rope, p.dr, i0, rows, range);
  }
}

template <class T>
void backward(const AttentionBackward& k) {
  const Problem<T, AttentionBackward> p{k};
  const int64_t B = k.q.size(0), kv_heads = p.H / p.group;
#pragma omp parallel if (B * p.H * p.Tq * p.Tk > 4096)
  {
    std::vector<T> score(static_cast<size_t>(kRows * p.Tk)), dscore(score.size());
    std::vector<T> keys(static_cast<size_t>((p.dk + p.dr) * p.Tk)), values(static_cast<size_t>(p.dv * p.Tk));
#pragma omp for schedule(static)
    for (int64_t task = 0; task < B * kv_heads; ++task) {
      const int64_t b = task / kv_heads, first = task % kv_heads * p.group;
      transpose_keys(p, b, first / p.group, keys.data());
      transpose(Head<T>(k.v, b, first / p.group), p.Tk, p.dv, values.data());
      for (int64_t h = first; h < first + p.group; ++h)
        backward_head<T>(k, p, b, h, h == first, keys.data(), values.data(), score.data(), dscore.data());
    }
  }
  if (!p.dr) return;
  cpu::parallel_ranges(B * p.Tk, 64, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / p.Tk, t = n % p.Tk;
      T* target = Head<T>(k.k_rope_grad, b, 0).row(t);
      for (int64_t c = 0; c < p.dr; ++c) {
        T sum = 0;
        for (int64_t h = 0; h < p.H; ++h) sum += k.workspace.as<T>()[((b * p.H + h) * p.Tk + t) * p.dr + c];
        target[c] = sum;
      }
    }
  });
}

}  // namespace

void run(CpuContext&, const AttentionForward& k) {
  cpu::for_float(k.q.dtype, AttentionForward::kName, [&](auto t) { forward<decltype(t)>(k); });
}

void run(CpuContext&, const AttentionBackward& k) {
  cpu::for_float(k.q.dtype, AttentionBackward::kName, [&](auto t) { backward<decltype(t)>(k); });
}

int64_t attention_backward_workspace(CpuContext&, const AttentionBackward& k) {
  return k.k_rope.defined() ? k.q.size(0) * k.q.size(2) * k.q.size(1) * k.k_rope.size(3) : 0;
}

// The most that any back end asks for; on CUDA that is Hopper's kernel where it takes the shape.
int64_t attention_backward_workspace(PlanContext& context, const AttentionBackward& k) {
  CpuContext unused;
  const int64_t rope = k.k_rope.defined() ? k.k_rope.size(3) : 0, least = attention_backward_workspace(unused, k);
  if (context.for_cpu() || k.q.dtype != DType::bf16 ||
      !hopper::suits_shape(k.q.size(1), k.q.size(3), rope ? k.k.size(3) : 0, k.v.size(3)))
    return least;
  const hopper::WidthClass widths = hopper::width_class(k.q.size(3), k.v.size(3));
  return std::max(least,
                  hopper::backward_space(k.q.size(0), k.q.size(2), k.k.size(2), k.q.size(1), rope, widths).total());
}

}  // namespace egmla
