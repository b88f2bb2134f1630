// Bytes: the cache once. bf16: a block owns a key head (all rows of MLA), up to 16 of its query heads and a split of
// the context; tiles of 64 tokens are copied ahead into shared memory. Scores: each of four warps takes 16 tokens;
// values: each takes a quarter of the columns. Other types and widths: a block a query head, a thread a token.
#include "kernels/decode_attention.h"
#include "kernels/decode_tile.cuh"

namespace egmla {
namespace {

using decode::Bf16;
using decode::kRowPad;
using decode::Range;

constexpr int kHeads = 16;  // query heads in a block
constexpr int kTile = 64;   // tokens
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

template <class T>
struct Args {
  float* partials;
  const T *q, *k, *v;
  const int32_t* positions;
  int64_t q_batch, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head;
  int H, group, dk, dv, splits;
  float scale;
  bool shared_rows;  // values are the keys' first columns

  explicit Args(const DecodeAttention& d)
      : partials(d.partials.as<float>()),
        q(d.q.as<T>()),
        k(d.k.as<T>()),
        v(d.v.as<T>()),
        positions(d.positions.as<int32_t>()),
        q_batch(d.q.stride(0)),
        q_head(d.q.stride(1)),
        k_batch(d.k.stride(0)),
        k_row(d.k.stride(1)),
        k_head(d.k.stride(2)),
        v_batch(d.v.stride(0)),
        v_row(d.v.stride(1)),
        v_head(d.v.stride(2)),
        H(static_cast<int>(d.q.size(1))),
        group(static_cast<int>(d.q.size(1) / d.k.size(2))),
        dk(static_cast<int>(d.q.size(2))),
        dv(static_cast<int>(d.v.size(3))),
        splits(static_cast<int>(d.partials.size(2))),
        scale(static_cast<float>(d.scale)),
        shared_rows(d.k.data == d.v.data && d.k.strides == d.v.strides && d.v.size(3) <= d.k.size(3)) {}

  __device__ float* partial(int b, int h, int split) const {
    return partials + ((int64_t{b} * H + h) * splits + split) * (dv + 2);
  }
};

// Rows [first, first + kTile) of one head of the cache; zeros from `end` on and beyond the width.
__device__ inline void load_rows(uint32_t target, int stride, const Bf16* data, int64_t row_stride, int width,
                                 int padded_width, int first, int end) {
  const int chunks = padded_width / 8, lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < kTile; row += kWarps) {
    const Bf16* const source = data + (first + row) * row_stride;
    for (int chunk = lane; chunk < chunks; chunk += 32) {
      const bool inside = first + row < end && chunk * 8 < width;
      flash::copy_async_16(target + 2 * static_cast<uint32_t>(row * stride + chunk * 8),
                           inside ? source + chunk * 8 : data, inside);
    }
  }
}

// Sizes in elements of bf16; tiles come in pairs.
struct Layout {
  int k_width, v_width, k_stride, v_stride, k_tile, v_tile;
  bool shared_rows;
  __host__ __device__ Layout(int dk, int dv, int padded_dv, bool shared)
      : k_width((dk + 15) / 16 * 16),
        v_width(padded_dv),
        k_stride((shared && padded_dv > k_width ? padded_dv : k_width) + kRowPad),
        v_stride(shared ? k_stride : padded_dv + kRowPad),
        k_tile(kTile * k_stride),
        v_tile(shared ? 0 : kTile * v_stride),
        shared_rows(shared) {
    static_cast<void>(dv);
  }
  __host__ __device__ int elements() const {
    return kHeads * (k_width + kRowPad) + 2 * (k_tile + v_tile) + kHeads * (kTile + kRowPad);
  }
  __host__ __device__ size_t bytes() const { return sizeof(Bf16) * elements() + sizeof(float) * 2 * kWarps * kHeads; }
};

// kColumns: tiles of eight value columns that a warp owns.
template <int kColumns>
__global__ void __launch_bounds__(kThreads) tensor_kernel(Args<Bf16> a) {
  extern __shared__ __align__(128) unsigned char memory[];
  const Layout layout(a.dk, a.dv, kColumns * 8 * kWarps, a.shared_rows);
  const int q_stride = layout.k_width + kRowPad, p_stride = kTile + kRowPad;
  Bf16* const q = reinterpret_cast<Bf16*>(memory);
  Bf16* const keys = q + kHeads * q_stride;
  Bf16* const values = a.shared_rows ? keys : keys + 2 * layout.k_tile;
  Bf16* const p = keys + 2 * (layout.k_tile + layout.v_tile);
  float* const row_max = reinterpret_cast<float*>(p + kHeads * p_stride);  // [warps][16]
  float* const row_sum = row_max + kWarps * kHeads;
  const int blocks_in_group = (a.group + kHeads - 1) / kHeads;
  const int kv_head = static_cast<int>(blockIdx.x) / blocks_in_group, b = static_cast<int>(blockIdx.z);
  const int within = static_cast<int>(blockIdx.x) % blocks_in_group * kHeads;
  const int head0 = kv_head * a.group + within, heads = min(kHeads, a.group - within);
  const int split = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const Range range = decode::split_range(a.positions[b] + 1, split, a.splits, kTile);  // moved on a step ago
  gpu::wait_for_previous();
  if (range.first >= range.end) {
    for (int h = 0; h < heads; ++h) decode::write_nothing(a.partial(b, head0 + h, split), a.dv, kThreads);
    return;
  }
  const Bf16* const k_rows = a.k + b * a.k_batch + kv_head * a.k_head;
  const Bf16* const v_rows = a.v + b * a.v_batch + kv_head * a.v_head;
  const auto load = [&](int first, int buffer) {
    load_rows(decode::shared_address(keys + buffer * layout.k_tile), layout.k_stride, k_rows, a.k_row, a.dk,
              layout.k_stride - kRowPad, first, range.end);
    if (!a.shared_rows)
      load_rows(decode::shared_address(values + buffer * layout.v_tile), layout.v_stride, v_rows, a.v_row, a.dv,
                layout.v_width, first, range.end);
    decode::commit_copies();
  };
  // q with the first tile, a warp a head at a time.
  const Bf16* const queries = a.q + b * a.q_batch + head0 * a.q_head;
  for (int h = warp; h < kHeads; h += kWarps) {
    for (int c = lane * 8; c < layout.k_width; c += 32 * 8) {
      const bool inside = h < heads && c < a.dk;
      flash::copy_async_16(decode::shared_address(q + h * q_stride + c), inside ? queries + h * a.q_head + c : queries,
                           inside);
    }
  }
  load(range.first, 0);
  float out[kColumns][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sums[2] = {0, 0};
  const uint32_t q_lane = decode::shared_address(q + (lane & 15) * q_stride + (lane >> 4) * 8);
  const uint32_t p_lane = decode::shared_address(p + (lane & 15) * p_stride + (lane >> 4) * 8);
  const float scale = a.scale * decode::kLog2E;
  for (int first = range.first, buffer = 0; first < range.end; first += kTile, buffer ^= 1) {
    flash::wait_for_copies();
    __syncthreads();
    if (first + kTile < range.end) load(first + kTile, buffer ^ 1);
    // Scores of this warp's 16 tokens.
    float s[2][4] = {};
    const uint32_t k_lane =
        decode::shared_address(keys + buffer * layout.k_tile +
                               (16 * warp + (lane & 7) + ((lane >> 4) << 3)) * layout.k_stride + ((lane >> 3) & 1) * 8);
    for (int c = 0; c < layout.k_width; c += 16) {
      uint32_t fa[4], fb[4];
      flash::load_matrices(fa, q_lane + 2 * c);
      flash::load_matrices(fb, k_lane + 2 * c);
      flash::multiply_add(s[0], fa, fb[0], fb[1]);
      flash::multiply_add(s[1], fa, fb[2], fb[3]);
    }
    float tile_max[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = first + 16 * warp + 8 * n + 2 * (lane & 3) + (i & 1);
        s[n][i] = token < range.end ? s[n][i] * scale : -INFINITY;
        tile_max[i / 2] = fmaxf(tile_max[i / 2], s[n][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      tile_max[half] = fmaxf(tile_max[half], __shfl_xor_sync(0xffffffffu, tile_max[half], 1));
      tile_max[half] = fmaxf(tile_max[half], __shfl_xor_sync(0xffffffffu, tile_max[half], 2));
      if ((lane & 3) == 0) row_max[warp * kHeads + 8 * half + lane / 4] = tile_max[half];
    }
    __syncthreads();
    float correction[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = largest[half];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) best = fmaxf(best, row_max[w * kHeads + 8 * half + lane / 4]);
      correction[half] = flash::power_of_two(largest[half] - best);
      largest[half] = best;
      sums[half] *= correction[half];
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float x = flash::power_of_two(s[n][2 * half] - largest[half]);
        const float y = flash::power_of_two(s[n][2 * half + 1] - largest[half]);
        sums[half] += x + y;
        *reinterpret_cast<uint32_t*>(p + (8 * half + lane / 4) * p_stride + 16 * warp + 8 * n + 2 * (lane & 3)) =
            flash::pack_pair(x, y);
      }
    }
    __syncthreads();
    // Values: this warp's columns of all tokens.
    const uint32_t v_lane =
        decode::shared_address(values + buffer * (a.shared_rows ? layout.k_tile : layout.v_tile) +
                               (lane & 15) * layout.v_stride + warp * kColumns * 8 + (lane >> 4) * 8);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= correction[i / 2];
    }
#pragma unroll
    for (int t = 0; t < kTile; t += 16) {
      uint32_t fa[4];
      flash::load_matrices(fa, p_lane + 2 * t);
#pragma unroll
      for (int n = 0; n < kColumns; n += 2) {
        uint32_t fb[4];
        flash::load_matrices_transposed(fb, v_lane + 2 * static_cast<uint32_t>(t * layout.v_stride + n * 8));
        flash::multiply_add(out[n], fa, fb[0], fb[1]);
        flash::multiply_add(out[n + 1], fa, fb[2], fb[3]);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sums[half] += __shfl_xor_sync(0xffffffffu, sums[half], 1);
    sums[half] += __shfl_xor_sync(0xffffffffu, sums[half], 2);
    if ((lane & 3) == 0) row_sum[warp * kHeads + 8 * half + lane / 4] = sums[half];
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int h = 8 * half + lane / 4;
    if (h >= heads) continue;
    float* const target = a.partial(b, head0 + h, split);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int column = warp * kColumns * 8 + 8 * n + 2 * (lane & 3);
      if (column < a.dv) target[column] = out[n][2 * half];
      if (column + 1 < a.dv) target[column + 1] = out[n][2 * half + 1];
    }
    if (warp != 0 || (lane & 3) != 0) continue;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += row_sum[w * kHeads + h];
    target[a.dv] = largest[half] / decode::kLog2E;
    target[a.dv + 1] = sum;
  }
}

// A block a query head and split; tiles of as many tokens as threads, one score a thread, then columns by threads.
template <class T>
__global__ void __launch_bounds__(kThreads) plain_kernel(Args<T> a) {
  extern __shared__ float space[];  // q [dk], out [dv]
  __shared__ float p[kThreads];
  float* const q = space;
  float* const out = space + a.dk;
  const int h = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int thread = static_cast<int>(threadIdx.x);
  gpu::wait_for_previous();
  const Range range = decode::split_range(a.positions[b] + 1, split, a.splits, kTile);
  float* const target = a.partial(b, h, split);
  if (range.first >= range.end) return decode::write_nothing(target, a.dv, kThreads);
  for (int i = thread; i < a.dk; i += kThreads) q[i] = gpu::to_float(a.q[b * a.q_batch + h * a.q_head + i]) * a.scale;
  for (int i = thread; i < a.dv; i += kThreads) out[i] = 0;
  const T* const keys = a.k + b * a.k_batch + h / a.group * a.k_head;
  const T* const values = a.v + b * a.v_batch + h / a.group * a.v_head;
  float largest = -INFINITY, sum = 0;
  for (int first = range.first; first < range.end; first += kThreads) {
    __syncthreads();
    const int token = first + thread;
    float score = -INFINITY;
    if (token < range.end) {
      score = 0;
      for (int i = 0; i < a.dk; ++i) score += q[i] * gpu::to_float(keys[token * a.k_row + i]);
    }
    const float best = fmaxf(largest, gpu::block_max(score)), correction = __expf(largest - best);
    largest = best;
    p[thread] = token < range.end ? __expf(score - best) : 0.0f;
    sum = sum * correction + gpu::block_sum(p[thread]);
    __syncthreads();
    const int count = min(kThreads, range.end - first);
    for (int i = thread; i < a.dv; i += kThreads) {
      float total = out[i] * correction;
      for (int t = 0; t < count; ++t) total += p[t] * gpu::to_float(values[(first + t) * a.v_row + i]);
      out[i] = total;
    }
  }
  for (int i = thread; i < a.dv; i += kThreads) target[i] = out[i];
  if (thread > 0) return;
  target[a.dv] = largest;
  target[a.dv + 1] = sum;
}

template <int kColumns>
void run_tensor(CudaContext& context, const DecodeAttention& d, const Args<Bf16>& a) {
  const Layout layout(a.dk, a.dv, kColumns * 8 * kWarps, a.shared_rows);
  const auto blocks = static_cast<unsigned>(d.k.size(2) * gpu::ceil_div(a.group, kHeads));
  launch_chained(context, DecodeAttention::kName,
                 dim3(blocks, static_cast<unsigned>(a.splits), static_cast<unsigned>(d.q.size(0))), kThreads,
                 layout.bytes(), tensor_kernel<kColumns>, a);
}

constexpr int kCombineThreads = 128;

template <class T>
struct CombineArgs {
  T* out;
  const float* partials;
  int64_t batch_stride, head_stride;
  int H, dv, splits;
};

// A thread a column. Every warp weighs the splits for itself, a lane a split, so nobody waits for another warp.
template <class T>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(CombineArgs<T> a) {
  const int h = static_cast<int>(blockIdx.x), b = static_cast<int>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x) % 32, stride = a.dv + 2;
  const int column = static_cast<int>(blockIdx.z) * kCombineThreads + static_cast<int>(threadIdx.x);
  gpu::wait_for_previous();
  const float* const partials = a.partials + (int64_t{b} * a.H + h) * a.splits * stride;
  float largest = -INFINITY, sum = 0, total = 0;
  for (int s = lane; s < a.splits; s += 32) largest = fmaxf(largest, partials[s * stride + a.dv]);
  largest = gpu::warp_max(largest);
  for (int first = 0; first < a.splits; first += 32) {
    const float* const own = partials + (first + lane) * stride + a.dv;
    const float weight = first + lane < a.splits ? __expf(own[0] - largest) : 0.0f;
    sum += first + lane < a.splits ? weight * own[1] : 0.0f;
    const float* const rows = partials + first * stride + min(column, a.dv - 1);
    const int count = min(32, a.splits - first);
#pragma unroll 8
    for (int s = 0; s < count; ++s) total += __shfl_sync(0xffffffffu, weight, s) * rows[s * stride];
  }
  sum = gpu::warp_sum(sum);
  if (column < a.dv) a.out[b * a.batch_stride + h * a.head_stride + column] = T(total / sum);
}

}  // namespace

void run(CudaContext& context, const DecodeAttention& d) {
  check(d.partials.size(3) == d.v.size(3) + 2 && d.q.size(2) == d.k.size(3),
        "decode_attention: partials must be [B,H,S,dv+2] and q [B,H,dk]; q is {}, k is {}, v is {}, partials is {}",
        d.q.shape.text(), d.k.shape.text(), d.v.shape.text(), d.partials.shape.text());
  gpu::for_float(d.q.dtype, DecodeAttention::kName, [&](auto t) {
    using T = decltype(t);
    const Args<T> a(d);
    if constexpr (std::is_same_v<T, bf16>) {
      constexpr int kMostShared = 225 * 1024;
      const auto fits = [&](int columns) {
        return a.dv <= columns * 8 * kWarps &&
               Layout(a.dk, a.dv, columns * 8 * kWarps, a.shared_rows).bytes() <= kMostShared;
      };
      if (gpu::all_aligned(d.q, d.k, d.v) && a.dk % 8 == 0 && a.dv % 8 == 0 && context.state().capability >= 90) {
        if (fits(2)) return run_tensor<2>(context, d, a);
        if (fits(4)) return run_tensor<4>(context, d, a);
        if (fits(8)) return run_tensor<8>(context, d, a);
        if (fits(16)) return run_tensor<16>(context, d, a);
      }
    }
    launch_chained(
        context, DecodeAttention::kName,
        dim3(static_cast<unsigned>(a.H), static_cast<unsigned>(a.splits), static_cast<unsigned>(d.q.size(0))), kThreads,
        static_cast<size_t>(a.dk + a.dv) * sizeof(float), plain_kernel<T>, a);
  });
}

void run(CudaContext& context, const DecodeCombine& k) {
  gpu::for_float(k.out.dtype, DecodeCombine::kName, [&](auto t) {
    using T = decltype(t);
    const CombineArgs<T> a{.out = k.out.as<T>(),
                           .partials = k.partials.as<float>(),
                           .batch_stride = k.out.stride(0),
                           .head_stride = k.out.stride(1),
                           .H = static_cast<int>(k.out.size(1)),
                           .dv = static_cast<int>(k.out.size(2)),
                           .splits = static_cast<int>(k.partials.size(2))};
    launch_chained(context, DecodeCombine::kName,
                   dim3(static_cast<unsigned>(a.H), static_cast<unsigned>(k.out.size(0)),
                        static_cast<unsigned>(gpu::ceil_div(a.dv, kCombineThreads))),
                   kCombineThreads, 0, combine_kernel<T>, a);
  });
}

}  // namespace egmla
