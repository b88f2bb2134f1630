// Attention on the CPU: one task per (batch, head), rows of queries against all keys they may see, products by
// OpenBLAS. Scores of one row tile live in a thread's scratch; the T x T matrix never exists. Backward rebuilds the
// tile from lse.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_hopper_space.h"
#include "kernels/blas_cpu.h"
#include "kernels/cpu_utils.h"

namespace egmla {
namespace {

constexpr int64_t kRows = 64;  // queries in a tile

using cpu::gemm;

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

  // score[rows, count] = scale * q k^T, rope part added.
  void scores(T* score, const Head<T>& q, const Head<T>& key, const Head<T>& rope, int64_t i0, int64_t rows,
              KeyRange range) const {
    const T scale = static_cast<T>(k.scale);
    gemm(false, true, rows, range.count, dk, scale, q.row(i0), q.stride, key.row(range.first), key.stride, T(0), score,
         range.count);
    if (dr)
      gemm(false, true, rows, range.count, dr, scale, q.row(i0) + dk, q.stride, rope.row(range.first), rope.stride,
           T(1), score, range.count);
  }
};

template <class T>
void forward(const AttentionForward& k) {
  const Problem<T, AttentionForward> p{k};
  const int64_t tiles = (p.Tq + kRows - 1) / kRows, tasks = k.q.size(0) * p.H;
#pragma omp parallel if (tasks * p.Tq * p.Tk > 4096)
  {
    std::vector<T> scratch(static_cast<size_t>(kRows * p.Tk));
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t b = task / p.H, h = task % p.H;
      const Head<T> q(k.q, b, h), key(k.k, b, h / p.group), value(k.v, b, h / p.group), out(k.out, b, h);
      const Head<T> rope = p.dr ? Head<T>(k.k_rope, b, 0) : Head<T>();
      T* lse = k.lse.as<T>() + task * p.Tq;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t i0 = tile * kRows, rows = std::min(kRows, p.Tq - i0);
        const KeyRange range = p.keys(b, i0, rows);
        T* score = scratch.data();
        p.scores(score, q, key, rope, i0, rows, range);
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
        gemm(false, false, rows, p.dv, range.count, T(1), score, range.count, value.row(range.first), value.stride,
             T(0), out.row(i0), out.stride);
      }
    }
  }
}

// Gradients of one query head; key and value gradients are overwritten when `first` (of its group), added to otherwise.
template <class T>
void backward_head(const AttentionBackward& k, const Problem<T, AttentionBackward>& p, int64_t b, int64_t h, bool first,
                   T* score, T* dscore) {
  const Head<T> q(k.q, b, h), key(k.k, b, h / p.group), value(k.v, b, h / p.group), out(k.out, b, h),
      dout(k.out_grad, b, h);
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
    p.scores(score, q, key, rope, i0, rows, range);
    gemm(false, true, rows, range.count, p.dv, T(1), dout.row(i0), dout.stride, value.row(range.first), value.stride,
         T(0), dscore, range.count);
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
    gemm(true, false, range.count, p.dv, rows, T(1), score, range.count, dout.row(i0), dout.stride, T(1),
         dvalue.row(range.first), dvalue.stride);
    gemm(true, false, range.count, p.dk, rows, T(1), dscore, range.count, q.row(i0), q.stride, T(1),
         dkey.row(range.first), dkey.stride);
    gemm(false, false, rows, p.dk, range.count, T(1), dscore, range.count, key.row(range.first), key.stride, T(0),
         dq.row(i0), dq.stride);
    if (!p.dr) continue;
    gemm(true, false, range.count, p.dr, rows, T(1), dscore, range.count, q.row(i0) + p.dk, q.stride, T(1),
         drope + range.first * p.dr, p.dr);
    gemm(false, false, rows, p.dr, range.count, T(1), dscore, range.count, rope.row(range.first), rope.stride, T(0),
         dq.row(i0) + p.dk, dq.stride);
  }
}

template <class T>
void backward(const AttentionBackward& k) {
  const Problem<T, AttentionBackward> p{k};
  const int64_t B = k.q.size(0), kv_heads = p.H / p.group;
#pragma omp parallel if (B * p.H * p.Tq * p.Tk > 4096)
  {
    std::vector<T> score(static_cast<size_t>(kRows * p.Tk)), dscore(score.size());
#pragma omp for schedule(static)
    for (int64_t task = 0; task < B * kv_heads; ++task) {
      const int64_t b = task / kv_heads, first = task % kv_heads * p.group;
      for (int64_t h = first; h < first + p.group; ++h)
        backward_head<T>(k, p, b, h, h == first, score.data(), dscore.data());
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
  cpu::keep_blas_single_threaded();
  cpu::for_float(k.q.dtype, AttentionForward::kName, [&](auto t) { forward<decltype(t)>(k); });
}

void run(CpuContext&, const AttentionBackward& k) {
  cpu::keep_blas_single_threaded();
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
