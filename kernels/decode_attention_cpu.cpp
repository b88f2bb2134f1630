// One task per sequence and head; each split's scores live in a thread's scratch.
#include <limits>
#include <vector>

#include "kernels/blas_cpu.h"
#include "kernels/cpu_utils.h"
#include "kernels/decode_attention.h"

namespace egmla {
namespace {

template <class T>
void attend(const DecodeAttention& k) {
  const int64_t B = k.q.size(0), H = k.q.size(1), dk = k.q.size(2), dv = k.v.size(3), S = k.partials.size(2);
  const int64_t group = H / k.k.size(2);
  const int32_t* positions = k.positions.as<int32_t>();
  const int64_t work = (*std::max_element(positions, positions + B) + 1) * (dk + dv);
  cpu::parallel_ranges(B * H, std::max<int64_t>(1, cpu::kProductsWorthAThread / work), [&](int64_t begin, int64_t end) {
    std::vector<T> scores;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / H, h = task % H, count = k.positions.as<int32_t>()[b] + 1, chunk = (count + S - 1) / S;
      const T* q = k.q.as<T>() + b * k.q.stride(0) + h * k.q.stride(1);
      const T* keys = k.k.as<T>() + b * k.k.stride(0) + h / group * k.k.stride(2);
      const T* values = k.v.as<T>() + b * k.v.stride(0) + h / group * k.v.stride(2);
      for (int64_t s = 0; s < S; ++s) {
        const int64_t first = std::min(count, s * chunk), n = std::min(count, first + chunk) - first;
        T* out = k.partials.as<T>() + (task * S + s) * (dv + 2);
        std::fill(out, out + dv + 2, T(0));
        out[dv] = static_cast<T>(kNoScore);
        if (n == 0) continue;
        scores.resize(static_cast<size_t>(n));
        cpu::gemm(false, true, 1, n, dk, static_cast<T>(k.scale), q, dk, keys + first * k.k.stride(1), k.k.stride(1),
                  T(0), scores.data(), n);
        const T largest = *std::max_element(scores.begin(), scores.end());
        T sum = 0;
        for (T& score : scores) {
          score = cpu::exp_of(score - largest);
          sum += score;
        }
        cpu::gemm(false, false, 1, dv, n, T(1), scores.data(), n, values + first * k.v.stride(1), k.v.stride(1), T(0),
                  out, dv);
        out[dv] = largest;
        out[dv + 1] = sum;
      }
    }
  });
}

template <class T>
void combine(const DecodeCombine& k) {
  const int64_t B = k.out.size(0), H = k.out.size(1), dv = k.out.size(2), S = k.partials.size(2);
  for (int64_t task = 0; task < B * H; ++task) {
    const T* partials = k.partials.as<T>() + task * S * (dv + 2);
    T* out = k.out.as<T>() + task / H * k.out.stride(0) + task % H * k.out.stride(1);
    T largest = partials[dv];
    for (int64_t s = 1; s < S; ++s) largest = std::max(largest, partials[s * (dv + 2) + dv]);
    std::fill(out, out + dv, T(0));
    T sum = 0;
    for (int64_t s = 0; s < S; ++s) {
      const T* part = partials + s * (dv + 2);
      const T weight = cpu::exp_of(part[dv] - largest);
      sum += weight * part[dv + 1];
      for (int64_t i = 0; i < dv; ++i) out[i] += weight * part[i];
    }
    for (int64_t i = 0; i < dv; ++i) out[i] /= sum;
  }
}

// Units of the device that run blocks side by side; 0 where a kernel cuts its work by itself.
int64_t units_of(CpuContext&) {
  return 0;
}
int64_t units_of(PlanContext&) {
  return 0;
}
#ifdef EGMLA_WITH_CUDA
int64_t units_of(CudaContext& context) {
  return multiprocessors_of(context);
}
#endif

}  // namespace

void run(CpuContext&, const DecodeAttention& k) {
  cpu::keep_blas_single_threaded();
  cpu::for_float(k.q.dtype, DecodeAttention::kName, [&](auto t) { attend<decltype(t)>(k); });
}

void run(CpuContext&, const DecodeCombine& k) {
  cpu::for_float(k.out.dtype, DecodeCombine::kName, [&](auto t) { combine<decltype(t)>(k); });
}

int64_t decode_splits(Context& context, int64_t tasks, int64_t capacity, int64_t tile, double overhead,
                      int64_t blocks_on_a_unit) {
  const int64_t units = context.visit([](auto& backend) { return units_of(backend); }) * blocks_on_a_unit;
  if (units == 0) return 1;
  constexpr int64_t kMostSplits = 64;
  const auto rounded_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t splits = 1; splits <= std::min(kMostSplits, rounded_up(capacity, tile)); ++splits) {
    const int64_t tiles = rounded_up(rounded_up(capacity, splits), tile);
    const double cost =
        static_cast<double>(rounded_up(tasks * splits, units)) * (static_cast<double>(tiles) + overhead);
    if (cost >= least) continue;
    least = cost;
    best = splits;
  }
  return best;
}

int64_t decode_splits_of_one(Context& context, int64_t heads) {
  return std::max<int64_t>(1, context.visit([](auto& backend) { return units_of(backend); }) / heads);
}

}  // namespace egmla
