// Attention without tensor cores, for f32 and for bf16 rows of odd widths or places. One warp owns one query (or one
// key) and takes 32 keys (queries) at a time: a lane scores one of them, then owns every 32nd column of the sums.
// Arithmetic is f32; every sum has one owner and a fixed order.
#include "kernels/attention_arguments.cuh"
#include "kernels/cuda_utils.cuh"

namespace egmla::flash {
namespace {

constexpr int kWarps = 4;
constexpr int kColumns = kMaxWidth / 32;  // columns of one lane

template <class T>
__device__ float dot(const T* a, const T* b, int width) {
  float sum = 0.0f;
  for (int c = 0; c < width; ++c) sum += gpu::to_float(a[c]) * gpu::to_float(b[c]);
  return sum;
}

// The keys of one head: its own columns, then the shared rope columns.
template <class T>
struct Keys {
  const T *own, *rope;
  int64_t stride, rope_stride;
  int width, rope_width;

  template <class Arguments>
  __device__ Keys(const Arguments& p, int b, int key_head)
      : own(p.k.at(b, key_head)),
        rope(p.k_rope.at(b, 0)),
        stride(p.k.row),
        rope_stride(p.k_rope.row),
        width(p.k.width),
        rope_width(p.k_rope.width) {}
  __device__ float score(const T* q, int j) const {
    return dot(q, own + j * stride, width) + dot(q + width, rope + j * rope_stride, rope_width);
  }
  __device__ float column(int j, int c) const {
    return gpu::to_float(c < width ? own[j * stride + c] : rope[j * rope_stride + c - width]);
  }
};

__device__ int warp_index() {
  return static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
}
__device__ int lane_index() {
  return static_cast<int>(threadIdx.x) % 32;
}
__device__ float from_lane(float x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}

template <class T>
__global__ void attention_forward_plain_kernel(const ForwardArguments<T> p) {
  const int i = warp_index(), lane = lane_index();
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  if (i >= p.queries) return;
  const int begin = p.document_start ? p.document_start[static_cast<int64_t>(b) * p.queries + i] : 0;
  const int end = i + p.keys - p.queries + 1;
  const T* q = p.q.at(b, h) + i * p.q.row;
  const T* v = p.v.at(b, h / p.group);
  const Keys<T> keys(p, b, h / p.group);
  float out[kColumns] = {}, largest = -INFINITY, sum = 0.0f;
  for (int j0 = begin; j0 < end; j0 += 32) {
    const float s = j0 + lane < end ? p.scale * keys.score(q, j0 + lane) : -INFINITY;
    const float top = fmaxf(largest, gpu::warp_max(s));
    const float probability = expf(s - top), rescale = expf(largest - top);
    largest = top;
    sum = sum * rescale + gpu::warp_sum(probability);
    for (int n = 0; n < kColumns; ++n) out[n] *= rescale;
    for (int t = 0; t < min(32, end - j0); ++t) {
      const float weight = from_lane(probability, t);
      const T* value = v + (j0 + t) * p.v.row;
      for (int n = 0, c = lane; c < p.v.width; ++n, c += 32) out[n] += weight * gpu::to_float(value[c]);
    }
  }
  T* target = p.out.at(b, h) + i * p.out.row;
  for (int n = 0, c = lane; c < p.v.width; ++n, c += 32) target[c] = T(out[n] / sum);
  if (lane == 0) p.lse[(static_cast<int64_t>(b) * p.heads + h) * p.queries + i] = largest + logf(sum);
}

template <class T>
__global__ void attention_query_gradient_plain_kernel(const BackwardArguments<T> p) {
  const int i = warp_index(), lane = lane_index();
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  if (i >= p.length) return;
  const int begin = p.document_start ? p.document_start[static_cast<int64_t>(b) * p.length + i] : 0, end = i + 1;
  const T* q = p.q.at(b, h) + i * p.q.row;
  const T* v = p.v.at(b, h / p.group);
  const T* out_grad = p.out_grad.at(b, h) + i * p.out_grad.row;
  const Keys<T> keys(p, b, h / p.group);
  const int64_t head_row = (static_cast<int64_t>(b) * p.heads + h) * p.length + i;
  float dq[kColumns] = {};
  for (int j0 = begin; j0 < end; j0 += 32) {
    float ds = 0.0f;
    if (const int j = j0 + lane; j < end) {
      const float probability = expf(p.scale * keys.score(q, j) - p.lse[head_row]);
      ds = p.scale * probability * (dot(out_grad, v + j * p.v.row, p.v.width) - p.delta[head_row]);
    }
    for (int t = 0; t < min(32, end - j0); ++t) {
      const float weight = from_lane(ds, t);
      for (int n = 0, c = lane; c < p.q.width; ++n, c += 32) dq[n] += weight * keys.column(j0 + t, c);
    }
  }
  T* target = p.q_grad.at(b, h) + i * p.q_grad.row;
  for (int n = 0, c = lane; c < p.q.width; ++n, c += 32) target[c] = T(dq[n]);
}

template <class T>
__global__ void attention_key_gradient_plain_kernel(const BackwardArguments<T> p) {
  const int j = warp_index(), lane = lane_index();
  const int key_head = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  if (j >= p.length) return;
  const int* starts = p.document_start ? p.document_start + static_cast<int64_t>(b) * p.length : nullptr;
  const int end = starts ? first_query_past(starts, p.length, j) : p.length;
  const T* v = p.v.at(b, key_head) + j * p.v.row;
  const Keys<T> keys(p, b, key_head);
  float dk[kColumns] = {}, dv[kColumns] = {};
  for (int h = key_head * p.group; h < (key_head + 1) * p.group; ++h) {
    const T* q = p.q.at(b, h);
    const T* out_grad = p.out_grad.at(b, h);
    const int64_t head_rows = (static_cast<int64_t>(b) * p.heads + h) * p.length;
    for (int i0 = j; i0 < end; i0 += 32) {
      float probability = 0.0f, ds = 0.0f;
      if (const int i = i0 + lane; i < end) {
        probability = expf(p.scale * keys.score(q + i * p.q.row, j) - p.lse[head_rows + i]);
        const float dp = dot(out_grad + i * p.out_grad.row, v, p.v.width);
        ds = p.scale * probability * (dp - p.delta[head_rows + i]);
      }
      for (int t = 0; t < min(32, end - i0); ++t) {
        const float value_weight = from_lane(probability, t), key_weight = from_lane(ds, t);
        const T* out_grad_row = out_grad + (i0 + t) * p.out_grad.row;
        const T* q_row = q + (i0 + t) * p.q.row;
        for (int n = 0, c = lane; c < p.v.width; ++n, c += 32) dv[n] += value_weight * gpu::to_float(out_grad_row[c]);
        for (int n = 0, c = lane; c < p.q.width; ++n, c += 32) dk[n] += key_weight * gpu::to_float(q_row[c]);
      }
    }
  }
  const int width = p.k.width, rope = p.k_rope.width, key_heads = p.heads / p.group;
  T* k_target = p.k_grad.at(b, key_head) + j * p.k_grad.row;
  T* v_target = p.v_grad.at(b, key_head) + j * p.v_grad.row;
  float* partial = p.rope_partials + ((static_cast<int64_t>(b) * key_heads + key_head) * p.length + j) * rope;
  for (int n = 0, c = lane; c < p.v.width; ++n, c += 32) v_target[c] = T(dv[n]);
  for (int n = 0, c = lane; c < p.q.width; ++n, c += 32) {
    if (c < width) {
      k_target[c] = T(dk[n]);
    } else {
      partial[c - width] = dk[n];
    }
  }
}

dim3 grid_of(int rows, int heads, int batch) {
  return dim3(static_cast<unsigned>(gpu::ceil_div(rows, kWarps)), static_cast<unsigned>(heads),
              static_cast<unsigned>(batch));
}

}  // namespace

template <class T>
void forward_plain(CudaContext& context, const ForwardArguments<T>& p, int batch) {
  launch_kernel(context, AttentionForward::kName, grid_of(p.queries, p.heads, batch), dim3(32 * kWarps), 0,
                attention_forward_plain_kernel<T>, p);
}

template <class T>
void backward_plain(CudaContext& context, const BackwardArguments<T>& p, int batch) {
  launch_kernel(context, AttentionBackward::kName, grid_of(p.length, p.heads, batch), dim3(32 * kWarps), 0,
                attention_query_gradient_plain_kernel<T>, p);
  launch_kernel(context, AttentionBackward::kName, grid_of(p.length, p.heads / p.group, batch), dim3(32 * kWarps), 0,
                attention_key_gradient_plain_kernel<T>, p);
}

template void forward_plain(CudaContext&, const ForwardArguments<float>&, int);
template void forward_plain(CudaContext&, const ForwardArguments<bf16>&, int);
template void backward_plain(CudaContext&, const BackwardArguments<float>&, int);
template void backward_plain(CudaContext&, const BackwardArguments<bf16>&, int);

}  // namespace egmla::flash
