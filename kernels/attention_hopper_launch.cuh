// What a launch of Hopper's attention kernels needs from the host: tensor maps, grids and the workspace's layout.
#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

#include "kernels/attention_hopper_backward.cuh"
#include "kernels/attention_hopper_forward.cuh"
#include "kernels/attention_hopper_space.h"
#include "kernels/attention_widths.cuh"

namespace egmla::hopper {

constexpr int64_t kCachedBytes = 24 << 20;  // of keys and values that one section of the forward grid reads again

// Calls function(flash::Widths<QK, V>{}) with the compiled widths.
template <class F>
void for_widths(int qk, int v, F&& function) {
  const WidthClass widths = width_class(qk, v);
  if (widths.qk == 64) return function(flash::Widths<64, 64>{});
  if (widths.qk == 96) return function(flash::Widths<96, 64>{});
  if (widths.qk == 128) return function(flash::Widths<128, 128>{});
  function(flash::Widths<192, 128>{});
}

// The driver's encoder, found at run time so that nothing links against libcuda; null where the driver lacks it.
inline PFN_cuTensorMapEncodeTiled_v12000 map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
      function = nullptr;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

// Boxes of `rows` x 64 of a tensor [B, T, heads, width].
inline CUtensorMap panel_map(const flash::Operand<Bf16>& x, int batch, int length, int heads, int rows) {
  CUtensorMap map;
  const auto stride = [](int64_t elements, int count) {
    return static_cast<cuuint64_t>(count > 1 ? 2 * elements : 16);  // an axis of one has no stride to speak of
  };
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(x.width), static_cast<cuuint64_t>(heads),
                              static_cast<cuuint64_t>(length), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[] = {stride(x.head, heads), stride(x.row, length), stride(x.batch, batch)};
  const cuuint32_t box[] = {kPanel, 1, static_cast<cuuint32_t>(rows), 1}, steps[] = {1, 1, 1, 1};
  const CUresult result = map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<Bf16*>(x.data), sizes,
                                        strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "attention: cuTensorMapEncodeTiled refused [{},{},{},{}], error {}", batch, length,
        heads, x.width, static_cast<int>(result));
  return map;
}

template <class Plan>
ForwardArguments forward_arguments(const flash::ForwardArguments<Bf16>& p, int batch, int* ticket) {
  const int key_heads = p.heads / p.group;
  const int64_t bytes = int64_t{p.keys} * 2 * (p.k.width + p.v.width) / p.group;
  ForwardArguments a{};
  a.q = panel_map(p.q, batch, p.queries, p.heads, Plan::BM);
  a.k = panel_map(p.k, batch, p.keys, key_heads, Plan::BN);
  a.k_rope = p.k_rope.data ? panel_map(p.k_rope, batch, p.keys, 1, Plan::BN) : a.k;
  a.v = panel_map(p.v, batch, p.keys, key_heads, Plan::BN);
  a.out = p.out;
  a.lse = p.lse;
  a.ticket = ticket;
  a.document_start = p.document_start;
  a.queries = p.queries;
  a.keys = p.keys;
  a.heads = p.heads;
  a.group = p.group;
  a.rows_of_heads = batch * p.heads;
  a.own_panels = p.k_rope.data ? p.k.width / kPanel : panels(Plan::QK);
  a.section = static_cast<int>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(kCachedBytes / bytes, 1))));
  a.scale = p.scale;
  return a;
}

template <class Plan>
dim3 forward_grid(const ForwardArguments& a, int multiprocessors) {
  const int64_t tiles = int64_t{(a.queries + Plan::BM - 1) / Plan::BM} * a.rows_of_heads;
  return dim3(static_cast<unsigned>(std::min<int64_t>(tiles, multiprocessors)));
}

template <class Plan>
BackwardArguments backward_arguments(const flash::BackwardArguments<Bf16>& p, int batch, float* workspace) {
  const int key_heads = p.heads / p.group;
  BackwardArguments a{};
  a.q = panel_map(p.q, batch, p.length, p.heads, Plan::BM);
  a.k = panel_map(p.k, batch, p.length, key_heads, Plan::BN);
  a.k_rope = p.k_rope.data ? panel_map(p.k_rope, batch, p.length, 1, Plan::BN) : a.k;
  a.v = panel_map(p.v, batch, p.length, key_heads, Plan::BN);
  a.out_grad = panel_map(p.out_grad, batch, p.length, p.heads, Plan::BM);
  a.q_grad = p.q_grad;
  a.k_grad = p.k_grad;
  a.v_grad = p.v_grad;
  a.rope_width = p.k_rope.data ? p.k_rope.width : 0;
  const BackwardSpace space =
      backward_space(batch, p.heads, key_heads, p.length, a.rope_width, width_class(p.q.width, p.v.width));
  a.sums = workspace;
  a.statistics = a.sums + space.sums;
  a.rope_partials = a.sums + space.sums + space.statistics;
  a.turns = reinterpret_cast<int*>(a.rope_partials + space.partials);
  a.document_start = p.document_start;
  a.length = p.length;
  a.heads = p.heads;
  a.group = p.group;
  a.key_heads = key_heads;
  a.own_panels = p.k_rope.data ? p.k.width / kPanel : panels(Plan::QK);
  a.tiles = (p.length + Plan::BN - 1) / Plan::BN;
  a.pairs = static_cast<int>(blocks_of_head(p.length));
  a.blocks_turn = batch * p.heads * a.tiles * Plan::kSubtiles;
  a.scale = p.scale;
  return a;
}

}  // namespace egmla::hopper
