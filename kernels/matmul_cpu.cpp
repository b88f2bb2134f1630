// Each thread owns a block of rows or columns of the result, so no barrier stands between products and results repeat
// bit for bit at an equal thread count.
#include "kernels/blas_cpu.h"
#include "kernels/cpu_utils.h"
#include "kernels/matmul.h"

namespace egmla {
namespace {

// Blocks of the cut axis are multiples of this, the width of OpenBLAS's micro-kernels.
constexpr int64_t kBlock = 16;

}  // namespace

void run(CpuContext&, const Matmul& k) {
  cpu::keep_blas_single_threaded();
  cpu::for_float(k.out.dtype, Matmul::kName, [&](auto t) {
    using T = decltype(t);
    const int64_t M = k.out.size(0), N = k.out.size(1), K = k.transpose_a ? k.a.size(0) : k.a.size(1);
    const int64_t lda = k.a.stride(0), ldb = k.b.stride(0), ldc = k.out.stride(0);
    const T* a = k.a.as<T>();
    const T* b = k.b.as<T>();
    T* out = k.out.as<T>();
    const T alpha = static_cast<T>(k.alpha), beta = k.accumulate ? T(1) : T(0);
    const bool by_rows = M >= N;
    const int64_t blocks = ((by_rows ? M : N) + kBlock - 1) / kBlock;
    const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, K * (by_rows ? N : M) * kBlock));
    cpu::parallel_ranges(blocks, grain, [&](int64_t first, int64_t last) {
      const int64_t begin = first * kBlock, count = std::min(by_rows ? M : N, last * kBlock) - begin;
      if (count <= 0) return;
      if (by_rows) {
        cpu::gemm(k.transpose_a, k.transpose_b, count, N, K, alpha, a + begin * (k.transpose_a ? 1 : lda), lda, b, ldb,
                  beta, out + begin * ldc, ldc);
      } else {
        cpu::gemm(k.transpose_a, k.transpose_b, M, count, K, alpha, a, lda, b + begin * (k.transpose_b ? ldb : 1), ldb,
                  beta, out + begin, ldc);
      }
    });
  });
}

}  // namespace egmla
