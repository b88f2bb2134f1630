// Tiles of attention in shared memory and the two products on them. A tile is [rows, W] bf16, cut into 16-byte chunks
// whose order is permuted row by row (swizzled) so that eight rows of one column of chunks meet all 32 banks.
// Accumulators are float[MT][NT][4]: MT row tiles of 16, NT column tiles of 8, laid out as multiply_add gives them.
#pragma once

#include "kernels/attention_arguments.cuh"
#include "kernels/attention_ptx.cuh"

namespace egmla::flash {

constexpr float kLog2E = 1.44269504088896341f;

// Rows of one head: columns [0, chunks) x 8 from data, the following up to total_chunks from rope, zeros after those.
struct Rows {
  const Bf16* data;
  int64_t stride;
  int chunks;
  const Bf16* rope;
  int64_t rope_stride;
  int total_chunks;
};

__device__ __forceinline__ Rows rows_of(const Operand<Bf16>& x, int b, int h) {
  return {x.at(b, h), x.row, x.width / 8, nullptr, 0, x.width / 8};
}

// MLA's keys: a head's own part, then the part all heads share.
__device__ __forceinline__ Rows rows_of(const Operand<Bf16>& x, const Operand<Bf16>& rope, int b, int h) {
  return {x.at(b, h), x.row, x.width / 8, rope.at(b, 0), rope.row, (x.width + rope.width) / 8};
}

// Chunks among which a row's permutation acts. Widths that are no multiple of 64 (96) start rows at two bank groups in
// turn, so four suffice there.
template <int W>
constexpr int kSwizzle = W % 64 == 0 ? 8 : 4;

// Byte offset of a chunk.
template <int W>
__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  static_assert(W % 32 == 0);
  const int turn = kSwizzle<W> == 8 ? row & 7 : (row >> 1) & 3;
  return static_cast<uint32_t>(row * (W / 8) + (chunk ^ turn)) * 16;
}

// Address of an even chunk further right than `first`, the address of chunk 0 or 1 of the same row: as tiles start at
// multiples of 128 bytes, the permutation is one exclusive or with a constant.
template <int W>
__device__ __forceinline__ uint32_t chunk_right_of(uint32_t first, int chunk) {
  return (first ^ static_cast<uint32_t>(chunk % kSwizzle<W> * 16)) +
         static_cast<uint32_t>(chunk / kSwizzle<W> * kSwizzle<W> * 16);
}

// Starts the copy of rows [first, first + kRows); rows from `end` on become zero. A thread keeps to one place within
// kSwizzle chunks and steps by a multiple of the permutation's period, so its offsets differ by constants.
template <int kRows, int W, int kThreads>
__device__ __forceinline__ void load_tile(uint32_t tile, const Rows& x, int first, int end) {
  constexpr int kGroup = kSwizzle<W>, kStep = kThreads / kGroup;
  static_assert(kRows % kStep == 0 && kStep % 8 == 0);
  const int thread = fresh_thread(), row0 = thread / kGroup, chunk0 = thread % kGroup;
  const uint32_t target = tile + chunk_offset<W>(row0, chunk0);
#pragma unroll
  for (int j = 0; j < W / 8 / kGroup; ++j) {
    const int chunk = chunk0 + j * kGroup;
    const bool own = chunk < x.chunks;
    const int64_t stride = own ? x.stride : x.rope_stride;
    const Bf16* source = (own ? x.data + 8 * chunk : x.rope + 8 * (chunk - x.chunks)) + (first + row0) * stride;
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      const bool inside = first + row0 + i * kStep < end && chunk < x.total_chunks;
      copy_async_16(target + 16 * (i * kStep * (W / 8) + j * kGroup), inside ? source + i * kStep * stride : x.data,
                    inside);
    }
  }
}

// Starts the copy of x[first .. first + kCount); zeros from `end` on.
template <int kCount, int kThreads>
__device__ __forceinline__ void load_row_values(uint32_t target, const float* x, int first, int end) {
  for (int i = static_cast<int>(threadIdx.x); i < kCount; i += kThreads) {
    const bool inside = first + i < end;
    copy_async_4(target + 4 * static_cast<uint32_t>(i), x + (inside ? first + i : 0), inside);
  }
}

template <int MT, int NT>
__device__ __forceinline__ void clear(float (&x)[MT][NT][4]) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[m][n][i] = 0.0f;
    }
  }
}

// acc += A B^T: A is rows [a_row, a_row + 16 MT) of tile a, B rows [0, 8 NT) of tile b, both W wide.
template <int W, int MT, int NT>
__device__ __forceinline__ void multiply_transposed(float (&acc)[MT][NT][4], uint32_t a, int a_row, uint32_t b) {
  const int lane = fresh_thread() & 31;
  const uint32_t a_first = a + chunk_offset<W>(a_row + (lane & 15), lane >> 4);
  const uint32_t b_first = b + chunk_offset<W>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
#pragma unroll
  for (int k = 0; k < W / 16; ++k) {
    uint32_t fa[MT][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) load_matrices(fa[m], chunk_right_of<W>(a_first, 2 * k) + 32 * W * m);
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      uint32_t fb[4];
      load_matrices(fb, chunk_right_of<W>(b_first, 2 * k) + 16 * W * n);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        multiply_add(acc[m][n], fa[m], fb[0], fb[1]);
        multiply_add(acc[m][n + 1], fa[m], fb[2], fb[3]);
      }
    }
  }
}

// acc += A B: A stands in registers (KT blocks of 16 columns), B is tile b with 16 KT rows, W wide.
template <int W, int MT, int KT>
__device__ __forceinline__ void multiply(float (&acc)[MT][W / 8][4], const uint32_t (&a)[MT][KT][4], uint32_t b) {
  const int lane = fresh_thread() & 31;
  const uint32_t first = b + chunk_offset<W>(lane & 15, lane >> 4);
#pragma unroll
  for (int k = 0; k < KT; ++k) {
#pragma unroll
    for (int n = 0; n < W / 8; n += 2) {
      uint32_t fb[4];
      load_matrices_transposed(fb, chunk_right_of<W>(first, n) + 32 * W * k);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        multiply_add(acc[m][n], a[m][k], fb[0], fb[1]);
        multiply_add(acc[m][n + 1], a[m][k], fb[2], fb[3]);
      }
    }
  }
}

// An accumulator becomes the left operand of the next product without leaving its registers.
template <int MT, int NT>
__device__ __forceinline__ void to_operand(uint32_t (&out)[MT][NT / 2][4], const float (&x)[MT][NT][4]) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int k = 0; k < NT / 2; ++k) {
      out[m][k][0] = pack_pair(x[m][2 * k][0], x[m][2 * k][1]);
      out[m][k][1] = pack_pair(x[m][2 * k][2], x[m][2 * k][3]);
      out[m][k][2] = pack_pair(x[m][2 * k + 1][0], x[m][2 * k + 1][1]);
      out[m][k][3] = pack_pair(x[m][2 * k + 1][2], x[m][2 * k + 1][3]);
    }
  }
}

// First of the 16 MT rows that this warp owns in a block.
template <int MT>
__device__ __forceinline__ int warp_row() {
  return fresh_thread() / 32 * 16 * MT;
}

// Row of this lane within a warp's MT x 16 rows; half 0 holds elements 0 and 1, half 1 elements 2 and 3.
__device__ __forceinline__ int lane_row(int m, int half) {
  return 16 * m + 8 * half + ((fresh_thread() & 31) >> 2);
}

// First of this lane's two columns in column tile n.
__device__ __forceinline__ int lane_column(int n) {
  return 8 * n + 2 * (fresh_thread() & 3);
}

// Masks: scores that are not to be seen become -infinity. Places are compared relative to the lane's first column, so
// that columns are constants. Two layouts: rows are queries and columns keys, or (transposed) the other way round.

// Keys after their query: `ahead` is the position of the first row less that of the first column.
template <int MT, int NT>
__device__ __forceinline__ void mask_future(float (&s)[MT][NT][4], int ahead) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int last = ahead + lane_row(m, half) - lane_column(0);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (8 * n + c > last) s[m][n][2 * half + c] = -INFINITY;
        }
      }
    }
  }
}

// Keys before the document of their query; rows are queries from `row` on, columns keys from `key` on.
template <int MT, int NT>
__device__ __forceinline__ void mask_documents(float (&s)[MT][NT][4], const int* starts, int row, int last_row,
                                               int key) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = starts[min(row + lane_row(m, half), last_row)] - key - lane_column(0);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (8 * n + c < first) s[m][n][2 * half + c] = -INFINITY;
        }
      }
    }
  }
}

template <int MT, int NT>
__device__ __forceinline__ void mask_future_transposed(float (&s)[MT][NT][4], int ahead) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = ahead + lane_row(m, half) - lane_column(0);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (8 * n + c < first) s[m][n][2 * half + c] = -INFINITY;
        }
      }
    }
  }
}

// Rows are keys from `key` on, columns queries from `query` on.
template <int MT, int NT>
__device__ __forceinline__ void mask_documents_transposed(float (&s)[MT][NT][4], const int* starts, int query,
                                                          int last_query, int key) {
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int first = starts[min(query + lane_column(n) + c, last_query)] - key - lane_row(0, 0);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (16 * m + 8 * half < first) s[m][n][2 * half + c] = -INFINITY;
        }
      }
    }
  }
}

// Writes factor * x[.][n][2 half + {0, 1}] of the lane's rows [first, ...) below `end`, columns below x's width.
template <int MT, int NT>
__device__ __forceinline__ void store_rows(Bf16* target, int64_t stride, int width, const float (&x)[MT][NT][4],
                                           const float (&factor)[MT][2], int first, int end) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + lane_row(m, half);
      if (row >= end) continue;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        if (8 * n >= width) continue;
        const float scale = factor[m][half];
        const uint32_t pair = pack_pair(scale * x[m][n][2 * half], scale * x[m][n][2 * half + 1]);
        *reinterpret_cast<uint32_t*>(target + row * stride + lane_column(n)) = pair;
      }
    }
  }
}

}  // namespace egmla::flash
