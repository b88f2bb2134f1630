// Bytes an element of size s: 2 s.
#include "kernels/layout.h"
#include "kernels/walk.cuh"

namespace egmla {
namespace {

using gpu::kWalkThreads;
using gpu::Walk;

template <class Word>
__global__ void __launch_bounds__(kWalkThreads) copy_kernel(Walk<2> walk, Word* out, const Word* x) {
  const uint32_t item = blockIdx.x * kWalkThreads + threadIdx.x;
  if (item >= walk.items) return;
  int64_t offsets[2];
  const int count = walk.at(item, offsets);
  gpu::store(out + offsets[0], gpu::load(x + offsets[1], walk.wide, count), walk.wide, count);
}

template <class Word>
void copy(CudaContext& context, const Copy& k) {
  const Walk<2> walk = gpu::make_walk<2>(Copy::kName, {k.out, k.x});
  launch_kernel(context, Copy::kName, walk.blocks(), kWalkThreads, 0, copy_kernel<Word>, walk,
                static_cast<Word*>(k.out.data), static_cast<const Word*>(k.x.data));
}

}  // namespace

void run(CudaContext& context, const Copy& k) {
  check(k.out.shape == k.x.shape && k.out.dtype == k.x.dtype,
        "copy: shapes and dtypes must agree; out is {} {}, x is {} {}", k.out.shape.text(), name_of(k.out.dtype),
        k.x.shape.text(), name_of(k.x.dtype));
  check(k.x.dtype != DType::f64, "copy: the CUDA back end holds no f64");
  if (k.x.dtype == DType::bf16) return copy<uint16_t>(context, k);
  copy<uint32_t>(context, k);
}

}  // namespace egmla
