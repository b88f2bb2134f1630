#include "kernels/cpu_utils.h"
#include "kernels/rope.h"

namespace egmla {

void run(CpuContext&, const Rope& k) {
  cpu::for_float(k.x.dtype, Rope::kName, [&](auto type) {
    using T = decltype(type);
    const int64_t B = k.x.size(0), L = k.x.size(1), H = k.x.size(2), half = k.x.size(3) / 2;
    const int32_t* positions = k.positions.defined() ? k.positions.as<int32_t>() : nullptr;
    const T sign = k.inverse ? T(-1) : T(1);
    cpu::parallel_ranges(B * L, 32, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t b = n / L, t = n % L, position = positions ? positions[n] : t;
        const T* cos = k.cos.as<T>() + position * half;
        const T* sin = k.sin.as<T>() + position * half;
        for (int64_t h = 0; h < H; ++h) {
          T* x = k.x.as<T>() + b * k.x.stride(0) + t * k.x.stride(1) + h * k.x.stride(2);
          const int64_t step = k.interleave ? 2 : 1, other = k.interleave ? 1 : half;
          for (int64_t p = 0; p < half; ++p) {
            const T first = x[p * step], second = x[p * step + other], s = sign * sin[p];
            x[p * step] = first * cos[p] - second * s;
            x[p * step + other] = second * cos[p] + first * s;
          }
        }
      }
    });
  });
}

}  // namespace egmla
