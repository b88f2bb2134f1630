#include "kernels/cpu_utils.h"
#include "kernels/decode_heads.h"

namespace egmla {
namespace {

template <class T>
void head_linear(const HeadLinear& k) {
  const int64_t B = k.out.size(0), H = k.out.size(1), n = k.out.size(2), inner = k.x.size(2);

  cpu::parallel_ranges(B * H, std::max<int64_t>(1, cpu::kProductsWorthAThread / (n * inner)),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t task = begin; task < end; ++task) {
                           const int64_t b = task / H, h = task % H;
                           const T* x = k.x.as<T>() + b * k.x.stride(0) + h * k.x.stride(1);
                           const T* weight = k.weight.as<T>() + h * k.weight.stride(0);
                           T* out = k.out.as<T>() + b * k.out.stride(0) + h * k.out.stride(1);
                           if (k.transpose) {
                             std::fill(out, out + n, T(0));
                             for (int64_t i = 0; i < inner; ++i) {
                               const T* row = weight + i * k.weight.stride(1);
#pragma omp simd
                               for (int64_t j = 0; j < n; ++j) out[j] += x[i] * row[j];
                             }
                             continue;
                           }
                           for (int64_t j = 0; j < n; ++j) {
                             const T* row = weight + j * k.weight.stride(1);
                             T sum = 0;
#pragma omp simd reduction(+ : sum)
                             for (int64_t i = 0; i < inner; ++i) sum += x[i] * row[i];
                             out[j] = sum;
                           }
                         }
                       });
}

}  // namespace

void run(CpuContext&, const HeadLinear& k) {
  cpu::for_float(k.out.dtype, HeadLinear::kName, [&](auto t) { head_linear<decltype(t)>(k); });
}

}  // namespace egmla
