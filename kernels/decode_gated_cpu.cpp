// One task per sequence and head; keys and values of 128 tokens at a time live in a thread's scratch.
#include <vector>

#include "kernels/blas_cpu.h"
#include "kernels/cpu_utils.h"
#include "kernels/decode_attention.h"
#include "kernels/decode_gated.h"

namespace egmla {
namespace {

template <class T>
T activate(GateActivation activation, T x) {
  switch (activation) {
    case GateActivation::sigmoid:
      return cpu::sigmoid(x);
    case GateActivation::tanh:
      return cpu::tanh_of(x);
    case GateActivation::silu:
      return x * cpu::sigmoid(x);
    case GateActivation::none:
      break;
  }
  return x;
}

template <class T>
struct Task {
  const GatedDecodeAttention& k;
  int64_t b, h;
  std::vector<T> embeddings, gates, rows, scores;

  const T* cache_row(int64_t token) const {
    return k.cache.as<T>() + b * k.cache.stride(0) + token * k.cache.stride(1);
  }

  // gates[t] = the gate's projection of token first + t.
  void load_gates(const GateSide& side, int64_t first, int64_t count) {
    const int64_t w = side.up.size(1), de = k.embedding.size(1);
    const int32_t* ids = k.ids.as<int32_t>() + b * k.ids.stride(0) + first;
    gates.resize(static_cast<size_t>(count * w));
    if (side.table.defined()) {
      for (int64_t t = 0; t < count; ++t) {
        const T* row = side.table.as<T>() + ids[t] * side.table.stride(0) + h * side.table.stride(1);
        std::copy(row, row + w, gates.data() + t * w);
      }
      return;
    }
    embeddings.resize(static_cast<size_t>(count * de));
    for (int64_t t = 0; t < count; ++t) {
      const T* row = k.embedding.as<T>() + ids[t] * k.embedding.stride(0);
      std::copy(row, row + de, embeddings.data() + t * de);
    }
    cpu::gemm(false, true, count, w, de, T(1), embeddings.data(), de, side.gate.as<T>() + h * side.gate.stride(0),
              side.gate.stride(1), T(0), gates.data(), w);
  }

  // rows[t] = the key or value of token first + t, [w].
  void rebuild(const GateSide& side, int64_t first, int64_t count) {
    const int64_t w = side.up.size(1), dc = side.up.size(2);
    rows.resize(static_cast<size_t>(count * w));
    cpu::gemm(false, true, count, w, dc, T(1), cache_row(first), k.cache.stride(1),
              side.up.as<T>() + h * side.up.stride(0), side.up.stride(1), T(0), rows.data(), w);
    if (!side.gate.defined() && !side.table.defined()) return;
    load_gates(side, first, count);
    const T offset = static_cast<T>(k.offset);
    for (int64_t t = 0; t < count; ++t) {
      T* row = rows.data() + t * w;
      const T* gate = gates.data() + t * w;
      if (k.activation == GateActivation::none) {
#pragma omp simd
        for (int64_t i = 0; i < w; ++i) row[i] *= offset + gate[i];
      } else {
        for (int64_t i = 0; i < w; ++i) row[i] *= activate(k.activation, offset + gate[i]);
      }
      if (!side.mean.defined()) continue;
      const int64_t group = side.mean.size(2) == 1 ? 0 : h;
      const auto statistic = [&](const View& view) {
        return view.as<T>()[b * view.stride(0) + (first + t) * view.stride(1) + group];
      };
      const T mean = statistic(side.mean), rstd = statistic(side.rstd);
      const T* weight = side.weight.as<T>() + h * side.weight.stride(0);
      const T* bias = side.bias.as<T>() + h * side.bias.stride(0);
#pragma omp simd
      for (int64_t i = 0; i < w; ++i) row[i] = (row[i] - mean) * rstd * weight[i] + bias[i];
    }
  }

  // Tokens [first, first + count) into one split's partial.
  void attend(int64_t first, int64_t count, T* out) {
    const int64_t dn = k.k.up.size(1), dv = k.v.up.size(1), dc = k.k.up.size(2), dr = k.q.size(2) - dn;
    std::fill(out, out + dv + 2, T(0));
    out[dv] = static_cast<T>(kNoScore);
    if (count == 0) return;
    const T* q = k.q.as<T>() + b * k.q.stride(0) + h * k.q.stride(1);
    const T scale = static_cast<T>(k.scale);
    scores.resize(static_cast<size_t>(count));
    for (int64_t t = 0; t < count; t += kGatedTile) {
      const int64_t n = std::min(kGatedTile, count - t);
      rebuild(k.k, first + t, n);
      cpu::gemm(false, true, 1, n, dn, scale, q, dn, rows.data(), dn, T(0), scores.data() + t, n);
      cpu::gemm(false, true, 1, n, dr, scale, q + dn, dr, cache_row(first + t) + dc, k.cache.stride(1), T(1),
                scores.data() + t, n);
    }
    const T largest = *std::max_element(scores.begin(), scores.end());
    T sum = 0;
    for (T& score : scores) {
      score = cpu::exp_of(score - largest);
      sum += score;
    }
    for (int64_t t = 0; t < count; t += kGatedTile) {
      const int64_t n = std::min(kGatedTile, count - t);
      rebuild(k.v, first + t, n);
      cpu::gemm(false, false, 1, dv, n, T(1), scores.data() + t, n, rows.data(), dv, T(1), out, dv);
    }
    out[dv] = largest;
    out[dv + 1] = sum;
  }
};

template <class T>
void attend(const GatedDecodeAttention& k) {
  const int64_t B = k.q.size(0), H = k.q.size(1), dv = k.v.up.size(1), S = k.partials.size(2);
  const int32_t* positions = k.positions.as<int32_t>();
  const int64_t inner = k.k.up.size(2) + (k.k.table.defined() || k.v.table.defined() ? 0 : k.embedding.size(1));
  const int64_t work = (*std::max_element(positions, positions + B) + 1) * inner * (k.k.up.size(1) + dv);
  cpu::parallel_ranges(
      B * H, std::max<int64_t>(1, 4 * cpu::kProductsWorthAThread / work), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          Task<T> task{k, i / H, i % H, {}, {}, {}, {}};
          const int64_t count = k.positions.as<int32_t>()[task.b] + 1, chunk = (count + S - 1) / S;
          for (int64_t s = 0; s < S; ++s) {
            const int64_t first = std::min(count, s * chunk);
            task.attend(first, std::min(count, first + chunk) - first, k.partials.as<T>() + (i * S + s) * (dv + 2));
          }
        }
      });
}

template <class T>
void statistics(const GateStatistics& k) {
  const int64_t B = k.u.size(0), H = k.u.size(1), w = k.u.size(2), G = k.mean.size(2), heads = H / G;
  const T offset = static_cast<T>(k.offset);
  std::vector<T> y(static_cast<size_t>(heads * w));
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t group = 0; group < G; ++group) {
      T sum = 0;
      for (int64_t i = 0; i < heads; ++i) {
        const int64_t h = group * heads + i;
        const T* u = k.u.as<T>() + b * k.u.stride(0) + h * k.u.stride(1);
        const T* g = k.table.defined()
                         ? k.table.as<T>() + k.tokens.as<int32_t>()[b] * k.table.stride(0) + h * k.table.stride(1)
                         : k.g.as<T>() + b * k.g.stride(0) + h * k.g.stride(1);
        for (int64_t j = 0; j < w; ++j) {
          const T value = u[j] * activate(k.activation, offset + g[j]);
          y[static_cast<size_t>(i * w + j)] = value;
          sum += value;
        }
      }
      const T features = static_cast<T>(heads * w), mean = sum / features;
      T squares = 0;
      for (const T value : y) squares += (value - mean) * (value - mean);
      const int64_t at = k.positions.as<int32_t>()[b];
      k.mean.as<T>()[b * k.mean.stride(0) + at * k.mean.stride(1) + group] = mean;
      k.rstd.as<T>()[b * k.rstd.stride(0) + at * k.rstd.stride(1) + group] =
          T(1) / std::sqrt(squares / features + static_cast<T>(k.eps));
    }
  }
}

}  // namespace

void run(CpuContext&, const GatedDecodeAttention& k) {
  cpu::keep_blas_single_threaded();
  cpu::for_float(k.q.dtype, GatedDecodeAttention::kName, [&](auto t) { attend<decltype(t)>(k); });
}

void run(CpuContext&, const GateStatistics& k) {
  cpu::for_float(k.u.dtype, GateStatistics::kName, [&](auto t) { statistics<decltype(t)>(k); });
}

}  // namespace egmla
