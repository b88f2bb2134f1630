// A block of 256 threads takes a tile of 128 x 128, which passes through shared memory once: bf16 in, its e4m3 copy out
// of registers, its transpose out of shared memory, both in whole lines of 128 bytes. 4 bytes an element with both
// copies; SwiGLU 6 forward and 5 backward, whose bf16 result never exists.
#include <cuda_fp8.h>

#include "kernels/cuda_utils.cuh"
#include "kernels/quantize.h"
#include "kernels/swiglu.cuh"

namespace egmla {
namespace {

constexpr int kTile = static_cast<int>(kFp8Block), kThreads = 256;
constexpr int kLanes = kTile / gpu::kPacket;         // threads that hold a row of a tile
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

struct Targets {
  Target by_rows, by_columns;
};

using Packet = gpu::Packet<bf16>;

// A bf16 matrix in memory.
struct Matrix {
  const bf16* data;
  int64_t stride;
  bool wide;

  __device__ Packet load(int64_t row, int64_t column, int count) const {
    return gpu::load(data + row * stride + column, wide, count);
  }
};

// What a source's load(row, column, count) gives is copied; `count` elements exist. Its tiles run in the order
// tile_of(0), tile_of(1), ...
struct PlainSource {
  Matrix x;
  int64_t rows, columns;

  __device__ Packet load(int64_t row, int64_t column, int count) const { return x.load(row, column, count); }
  __device__ int64_t tile_of(unsigned block) const { return block; }
};

struct SwigluSource {
  Matrix gate_up;
  int64_t rows, columns;

  __device__ Packet load(int64_t row, int64_t column, int count) const {
    const Packet gate = gate_up.load(row, column, count), up = gate_up.load(row, columns + column, count);
    float values[gpu::kPacket];
#pragma unroll
    for (int i = 0; i < gpu::kPacket; ++i) {
      float out[1];
      gpu::SwigluOp{}({gate[i], up[i]}, out);
      values[i] = out[0];
    }
    Packet packet;
    gpu::round_to(packet, values);
    return packet;
  }
  __device__ int64_t tile_of(unsigned block) const {
    return block;
  }
};

// Both halves of the gradient need the same operands. Where the border lies between tiles, those of equal operands
// follow each other, so that the second finds them in the cache.
struct SwigluBackwardSource {
  Matrix out_grad, gate_up;
  int64_t rows, columns;

  __device__ Packet load(int64_t row, int64_t column, int count) const {
    const int64_t F = columns / 2, f = column < F ? column : column - F;
    const Packet d = out_grad.load(row, f, count), gate = gate_up.load(row, f, count),
                 up = gate_up.load(row, F + f, count);
    float values[gpu::kPacket];
#pragma unroll
    for (int i = 0; i < gpu::kPacket; ++i) {
      float out[2];
      gpu::SwigluBackwardOp<false>{}({d[i], gate[i], up[i]}, out);
      values[i] = column < F ? out[0] : out[1];
    }
    Packet packet;
    gpu::round_to(packet, values);
    return packet;
  }
  __device__ int64_t tile_of(unsigned block) const {
    const int64_t half = columns / 2 / kTile;
    return columns % (2 * kTile) ? block : block / 2 + block % 2 * half;
  }
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

template <bool kSquare, class Source>
__global__ void __launch_bounds__(kThreads) quantize_kernel(Source source, Targets a) {
  __shared__ uint4 tile[kTile * kLanes];            // [row][8 neighbours]; then the transpose
  __shared__ uint32_t largest_of[kParts * kWords];  // of a part of two columns, or of a warp
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const int64_t row_tile = blockIdx.y, column_tile = source.tile_of(blockIdx.x);
  const int64_t first_row = row_tile * kTile, first_column = column_tile * kTile;
  const int64_t column = first_column + lane * gpu::kPacket;
  const int exist = static_cast<int>(min(int64_t{gpu::kPacket}, max(int64_t{0}, source.columns - column)));

  Packet packets[kPackets];
#pragma unroll
  for (int i = 0; i < kPackets; ++i) {
    const int64_t row = first_row + i * (kThreads / kLanes) + thread / kLanes;
    packets[i] = source.load(row, column, row < source.rows ? exist : 0);
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
      if (a.by_rows.values) a.by_rows.scales[row_tile * a.by_rows.scale_stride + column_tile] = scale;
      if (a.by_columns.values) a.by_columns.scales[column_tile * a.by_columns.scale_stride + row_tile] = scale;
    }
  }
  if (a.by_rows.values) {
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      const int64_t row = first_row + i * (kThreads / kLanes) + thread / kLanes;
      if (row >= source.rows) continue;
      const Factor factor(kSquare ? largest_tile : largest_row[i]);
      uint32_t half[gpu::kPacket / 2];
#pragma unroll
      for (int w = 0; w < gpu::kPacket / 2; ++w)
        half[w] = pair(low(packets[i].words[w]) * factor.inverse, high(packets[i].words[w]) * factor.inverse);
      *reinterpret_cast<uint2*>(a.by_rows.values + row * a.by_rows.stride + column) =
          make_uint2(half[0] | half[1] << 16, half[2] | half[3] << 16);
      if (!kSquare && lane == 0) a.by_rows.scales[column_tile * a.by_rows.scale_stride + row] = factor.scale;
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
      for (int i = 0; i < 4; ++i) value[i] = (side ? high(words[r + i]) : low(words[r + i])) * factors[side].inverse;
      packed[r / 4] = pair(value[0], value[1]) | pair(value[2], value[3]) << 16;
    }
#pragma unroll
    for (int p = 0; p < kPartRows / 16; ++p)
      *transposed_part(tile, 2 * word + side, part * (kPartRows / 16) + p) =
          make_uint4(packed[4 * p], packed[4 * p + 1], packed[4 * p + 2], packed[4 * p + 3]);
    const int64_t outer = first_column + 2 * word + side;
    if (!kSquare && part == 0 && outer < a.by_columns.outer)
      a.by_columns.scales[row_tile * a.by_columns.scale_stride + outer] = factors[side].scale;
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

Matrix matrix_of(const View& view) {
  return {.data = view.as<bf16>(), .stride = view.stride(0), .wide = gpu::aligned(view)};
}

template <class Source>
void fill_copies(CudaContext& context, const char* name, const QuantizedViews& out, const Source& source) {
  check_copies(name, out, source.rows, source.columns);
  const Targets targets{target_of(out.rows, out.row_scales), target_of(out.columns, out.column_scales)};
  const dim3 grid(static_cast<unsigned>(fp8_blocks(source.columns)), static_cast<unsigned>(fp8_blocks(source.rows)));
  launch_kernel(context, name, grid, kThreads, 0,
                out.square ? quantize_kernel<true, Source> : quantize_kernel<false, Source>, source, targets);
}

// Packets must not lie across the border of gate and up.
void check_halves(const char* name, const View& gate_up) {
  check(gate_up.size(1) % (2 * gpu::kPacket) == 0, "{}: gate and up must have a multiple of {} columns; gate_up is {}",
        name, gpu::kPacket, gate_up.shape.text());
}

}  // namespace

void run(CudaContext& context, const Quantize& k) {
  fill_copies(context, Quantize::kName, k.out, PlainSource{matrix_of(k.x), k.x.size(0), k.x.size(1)});
}

void run(CudaContext& context, const QuantizeSwiglu& k) {
  check_halves(QuantizeSwiglu::kName, k.gate_up);
  fill_copies(context, QuantizeSwiglu::kName, k.out,
              SwigluSource{matrix_of(k.gate_up), k.gate_up.size(0), k.gate_up.size(1) / 2});
}

void run(CudaContext& context, const QuantizeSwigluBackward& k) {
  check_halves(QuantizeSwigluBackward::kName, k.gate_up);
  fill_copies(context, QuantizeSwigluBackward::kName, k.out,
              SwigluBackwardSource{matrix_of(k.out_grad), matrix_of(k.gate_up), k.gate_up.size(0), k.gate_up.size(1)});
}

}  // namespace egmla
