// OpenBLAS, called single-threaded from our own threads: each thread owns a block of rows or columns of the result,
// so no barrier stands between products and results repeat bit for bit at an equal thread count.
#include <cblas.h>

#include "kernels/cpu_utils.h"
#include "kernels/matmul.h"

namespace egmla {
namespace {

void gemm(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k, float alpha, const float* a, int lda,
          const float* b, int ldb, float beta, float* c, int ldc) {
  cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k, double alpha, const double* a, int lda,
          const double* b, int ldb, double beta, double* c, int ldc) {
  cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// Blocks of the cut axis are multiples of this, the width of OpenBLAS's micro-kernels.
constexpr int64_t kBlock = 16;

}  // namespace

void run(CpuContext&, const Matmul& k) {
  cpu::for_float(k.out.dtype, Matmul::kName, [&](auto t) {
    using T = decltype(t);
    static const bool single_threaded = (openblas_set_num_threads(1), true);
    (void)single_threaded;
    const int64_t M = k.out.size(0), N = k.out.size(1), K = k.transpose_a ? k.a.size(0) : k.a.size(1);
    const T* a = k.a.as<T>();
    const T* b = k.b.as<T>();
    T* out = k.out.as<T>();
    const auto ta = k.transpose_a ? CblasTrans : CblasNoTrans, tb = k.transpose_b ? CblasTrans : CblasNoTrans;
    const int lda = static_cast<int>(k.a.stride(0)), ldb = static_cast<int>(k.b.stride(0)),
              ldc = static_cast<int>(k.out.stride(0));
    const T alpha = static_cast<T>(k.alpha), beta = k.accumulate ? T(1) : T(0);
    const int Ki = static_cast<int>(K);
    const bool by_rows = M >= N;
    const int64_t blocks = ((by_rows ? M : N) + kBlock - 1) / kBlock;
    const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, K * (by_rows ? N : M) * kBlock));
    cpu::parallel_ranges(blocks, grain, [&](int64_t first, int64_t last) {
      const int64_t begin = first * kBlock, count = std::min(by_rows ? M : N, last * kBlock) - begin;
      if (count <= 0) return;
      if (by_rows) {
        gemm(ta, tb, static_cast<int>(count), static_cast<int>(N), Ki, alpha, a + begin * (k.transpose_a ? 1 : lda),
             lda, b, ldb, beta, out + begin * ldc, ldc);
      } else {
        gemm(ta, tb, static_cast<int>(M), static_cast<int>(count), Ki, alpha, a, lda,
             b + begin * (k.transpose_b ? ldb : 1), ldb, beta, out + begin, ldc);
      }
    });
  });
}

}  // namespace egmla
