#include <cstring>

#include "kernels/cpu_utils.h"
#include "kernels/embedding.h"

namespace egmla {

void run(CpuContext&, const EmbeddingForward& k) {
  cpu::for_float(k.out.dtype, EmbeddingForward::kName, [&](auto t) {
    using T = decltype(t);
    const View out = k.out.as_matrix();
    const int64_t N = out.size(0), C = out.size(1);
    const int32_t* ids = k.ids.as<int32_t>();
    cpu::parallel_ranges(N, 64, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        std::memcpy(out.as<T>() + n * out.stride(0), k.table.as<T>() + ids[n] * C, static_cast<size_t>(C) * sizeof(T));
    });
  });
}

void run(CpuContext&, const EmbeddingBackward& k) {
  cpu::for_float(k.out_grad.dtype, EmbeddingBackward::kName, [&](auto t) {
    using T = decltype(t);
    const View dout = k.out_grad.as_matrix();
    const int64_t C = dout.size(1), unique = k.segments.size(0) - 1;
    T* table = k.table_grad.as<T>();
    if (!k.accumulate) std::memset(table, 0, k.table_grad.bytes());
    const int32_t* ids = k.ids.as<int32_t>();
    const int32_t* order = k.order.as<int32_t>();
    const int32_t* segments = k.segments.as<int32_t>();
    cpu::parallel_ranges(unique, 16, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        T* row = table + ids[order[segments[u]]] * C;
        for (int32_t j = segments[u]; j < segments[u + 1]; ++j) {
          const T* dy = dout.as<T>() + order[j] * dout.stride(0);
#pragma omp simd
          for (int64_t i = 0; i < C; ++i) row[i] += dy[i];
        }
      }
    });
  });
}

}  // namespace egmla
