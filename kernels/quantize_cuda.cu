// One block of 256 threads a tile of 128 x 128, which passes through shared memory once: bf16 in, its e4m3 copy out of
// registers, its transpose out of shared memory. 4 bytes an element with both copies, each written in whole lines of 128
// bytes.
#include <cuda_fp8.h>

#include "kernels/cuda_utils.cuh"
#include "kernels/quantize.h"

namespace egmla {
namespace {

constexpr int kTile = static_cast<int>(kFp8Block), kThreads = 256;
constexpr int kLanes = kTile / gpu::kPacket;        // threads that hold a row of a tile
constexpr int kPackets = kTile * kLanes / kThreads;  // of a thread
constexpr int kWords = kTile / 2;                    // a word holds two neighbours of a row
constexpr int kParts = kThreads / kWords;            // threads that share a column
constexpr int kPartRows = kTile / kParts;

// A copy and its factors.
struct Target {
  uint8_t* values;
  float* scales;
  int64_t outer, stride, scale_stride;
};

struct Args {
  const bf16* x;
  int64_t rows, columns, stride;
  bool wide;
  Target by_rows, by_columns;
};

// The larger magnitude of each half of two words.
__device__ __forceinline__ uint32_t widen(uint32_t largest, uint32_t word) {
  return __vmaxu2(largest, word & 0x7fff7fffu);
}

// Two e4m3 in the low 16 bits, a first.
__device__ __forceinline__ uint32_t pair(float a, float b) {
  return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ float low(uint32_t word) {
  return __uint_as_float(word << 16);
}
__device__ __forceinline__ float high(uint32_t word) {
  return __uint_as_float(word & 0xffff0000u);
}

// Factors of blocks whose largest magnitudes are bf16 bits.
struct Factor {
  float scale, inverse;
  __device__ explicit Factor(uint32_t largest) {
    const uint32_t bits = fp8_scale_bits(largest << 16);
    scale = __uint_as_float(bits);
    inverse = __uint_as_float(fp8_inverse_bits(bits));
  }
};

// The transposed tile as it waits for its way out: rows of 128 bytes whose 16-byte parts are exchanged, so that neither
// side meets a bank twice.
__device__ __forceinline__ uint4* transposed_part(uint4* tile, int column, int part) {
  return tile + column * (kTile / 16) + (part ^ (column / 2 & 7));
}

template <bool kSquare>
__global__ void __launch_bounds__(kThreads) quantize_kernel(Args a) {
  __shared__ uint4 tile[kTile * kLanes];           // [row][8 neighbours]; then the transpose
  __shared__ uint32_t largest_of[kParts * kWords];  // of a part of two columns, or of a warp
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const int64_t first_row = int64_t{blockIdx.y} * kTile, first_column = int64_t{blockIdx.x} * kTile;
  const int64_t column = first_column + lane * gpu::kPacket;
  const int exist = static_cast<int>(min(int64_t{gpu::kPacket}, max(int64_t{0}, a.columns - column)));

  gpu::Packet<bf16> packets[kPackets];
#pragma unroll
  for (int i = 0; i < kPackets; ++i) {
    const int64_t row = first_row + i * (kThreads / kLanes) + thread / kLanes;
    packets[i] = gpu::load(a.x + row * a.stride + column, a.wide, row < a.rows ? exist : 0);
  }
  uint32_t largest_row[kPackets];
#pragma unroll
  for (int i = 0; i < kPackets; ++i) {
    uint32_t both = 0;
#pragma unroll
    for (int w = 0; w < gpu::kPacket / 2; ++w) both = widen(both, packets[i].words[w]);
    largest_row[i] = max(both & 0xffffu, both >> 16);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
      largest_row[i] = max(largest_row[i], __shfl_xor_sync(0xffffffffu, largest_row[i], step));
  }
  if (a.by_columns.values) {
#pragma unroll
    for (int i = 0; i < kPackets; ++i)
      tile[(i * (kThreads / kLanes) + thread / kLanes) * kLanes + lane] =
          make_uint4(packets[i].words[0], packets[i].words[1], packets[i].words[2], packets[i].words[3]);
  }
  uint32_t largest_tile = 0;
  if constexpr (kSquare) {
#pragma unroll
    for (int i = 0; i < kPackets; ++i) largest_tile = max(largest_tile, largest_row[i]);
    largest_tile = max(largest_tile, __shfl_xor_sync(0xffffffffu, largest_tile, kLanes));
    if (thread % 32 == 0) largest_of[thread / 32] = largest_tile;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; ++warp) largest_tile = max(largest_tile, largest_of[warp]);
    if (thread == 0) {
      const float scale = Factor(largest_tile).scale;
      if (a.by_rows.values) a.by_rows.scales[blockIdx.y * a.by_rows.scale_stride + blockIdx.x] = scale;
      if (a.by_columns.values) a.by_columns.scales[blockIdx.x * a.by_columns.scale_stride + blockIdx.y] = scale;
    }
  }
  if (a.by_rows.values) {
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      const int64_t row = first_row + i * (kThreads / kLanes) + thread / kLanes;
      if (row >= a.rows) continue;
      const Factor factor(kSquare ? largest_tile : largest_row[i]);
      uint32_t half[gpu::kPacket / 2];
#pragma unroll
      for (int w = 0; w < gpu::kPacket / 2; ++w)
        half[w] = pair(low(packets[i].words[w]) * factor.inverse, high(packets[i].words[w]) * factor.inverse);
      *reinterpret_cast<uint2*>(a.by_rows.values + row * a.by_rows.stride + column) =
          make_uint2(half[0] | half[1] << 16, half[2] | half[3] << 16);
      if (!kSquare && lane == 0) a.by_rows.scales[blockIdx.x * a.by_rows.scale_stride + row] = factor.scale;
    }
  }
  if (!a.by_columns.values) return;

  // A thread takes two columns over a part of the rows.
  __syncthreads();
  const int word = thread % kWords, part = thread / kWords;
  uint32_t words[kPartRows], largest = 0;
#pragma unroll
  for (int r = 0; r < kPartRows; ++r) {
    words[r] = reinterpret_cast<const uint32_t*>(tile)[(part * kPartRows + r) * kWords + word];
    largest = widen(largest, words[r]);
  }
  if constexpr (!kSquare) largest_of[thread] = largest;
  __syncthreads();  // the tile is read
  if constexpr (kSquare) {
    largest = largest_tile | largest_tile << 16;
  } else {
#pragma unroll
    for (int p = 0; p < kParts; ++p) largest = __vmaxu2(largest, largest_of[p * kWords + word]);
  }
  const Factor factors[2] = {Factor(largest & 0xffffu), Factor(largest >> 16)};
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    uint32_t packed[kPartRows / 4];
#pragma unroll
    for (int r = 0; r < kPartRows; r += 4) {
      float value[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        value[i] = (side ? high(words[r + i]) : low(words[r + i])) * factors[side].inverse;
      packed[r / 4] = pair(value[0], value[1]) | pair(value[2], value[3]) << 16;
    }
#pragma unroll
    for (int p = 0; p < kPartRows / 16; ++p)
      *transposed_part(tile, 2 * word + side, part * (kPartRows / 16) + p) =
          make_uint4(packed[4 * p], packed[4 * p + 1], packed[4 * p + 2], packed[4 * p + 3]);
    const int64_t outer = first_column + 2 * word + side;
    if (!kSquare && part == 0 && outer < a.by_columns.outer)
      a.by_columns.scales[blockIdx.y * a.by_columns.scale_stride + outer] = factors[side].scale;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTile * kTile / 16 / kThreads; ++i) {
    const int item = i * kThreads + thread, own = item / (kTile / 16), at = item % (kTile / 16);
    if (first_column + own >= a.by_columns.outer) continue;
    *reinterpret_cast<uint4*>(a.by_columns.values + (first_column + own) * a.by_columns.stride + first_row + at * 16) =
        *transposed_part(tile, own, at);
  }
}

Target target_of(const View& values, const View& scales) {
  if (!values.defined()) return {};
  check(gpu::aligned(values), "quantize: copies must start at multiples of 16 bytes");
  return {.values = values.as<uint8_t>(),
          .scales = scales.as<float>(),
          .outer = values.size(0),
          .stride = values.stride(0),
          .scale_stride = scales.stride(0)};
}

}  // namespace

void run(CudaContext& context, const Quantize& k) {
  check_views(k);
  const Args args{.x = k.x.as<bf16>(),
                  .rows = k.x.size(0),
                  .columns = k.x.size(1),
                  .stride = k.x.stride(0),
                  .wide = gpu::aligned(k.x),
                  .by_rows = target_of(k.rows, k.row_scales),
                  .by_columns = target_of(k.columns, k.column_scales)};
  const dim3 grid(static_cast<unsigned>(fp8_blocks(args.columns)), static_cast<unsigned>(fp8_blocks(args.rows)));
  launch_kernel(context, Quantize::kName, grid, kThreads, 0, k.square ? quantize_kernel<true> : quantize_kernel<false>,
                args);
}

}  // namespace egmla
