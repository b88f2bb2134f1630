// Bytes: the weights and the cache once. A step for one sequence is a chain of parts that each need the one before,
// with a few microseconds of launch, first loads and last adds between them; for those the memory would stand still.
// Here one block on each multiprocessor runs the whole chain: a warp of its own copies weights as far ahead as its ring
// in shared memory reaches, the others compute and meet those of all blocks between two parts.
#include "kernels/decode_chain.h"
#include "kernels/decode_chain_attention.cuh"
#include "kernels/decode_chain_latent.cuh"
#include "kernels/decode_chain_product.cuh"

namespace egmla {
namespace chain {  // named, as code that only sm_90a uses would be unused elsewhere

// kAttention: which attention parts there may be (product: none), as their code crowds out that of products.
template <Kind kAttention>
__global__ void __launch_bounds__(kAllThreads, 1) chain_kernel(const __grid_constant__ Args a) {
  if constexpr (hopper::kCompiled) {
    extern __shared__ __align__(128) unsigned char bytes[];
    const Memory memory(bytes);
    if (threadIdx.x == 0) {
      for (int s = 0; s < kSlots; ++s) {
        hopper::init_barrier(memory.full + 8 * s, 1);
        hopper::init_barrier(memory.empty + 8 * s, hopper::kWarpArrivals);
      }
      hopper::store_shared(memory.zeros, 0, 0, 0, 0);
      hopper::publish_barriers();
    }
    __syncthreads();
    gpu::release_next();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (warp == kWarps) return copy_weights(a, memory);
    gpu::wait_for_previous();
    if (warp == kWarps + 1) return meet_blocks(a);
    Meeting meeting;
    int n = 0;
    for (int p = 0; p < a.count; ++p) {
      const Part& part = a.parts[p];
      if (p > 0) meeting.arrive();
      if (part.kind == Kind::product) {
        prefetch_norm(part.product, memory);
        meeting.wait();
        if (kAttention == Kind::heads && part.product.partials)
          stage_mean(part.product, memory);
        else
          stage_input(part.product, memory);
        multiply_product(part.product, memory, n);
      } else if (part.kind == Kind::expand) {
        if constexpr (kAttention != Kind::product) expand_heads(part.expand, memory, meeting);
      } else {
        if constexpr (kAttention == Kind::heads) attend_heads(part.attend, memory, meeting);
        if constexpr (kAttention == Kind::latent) attend_latents(part.attend, memory, meeting);
      }
    }
  }
}

}  // namespace chain

namespace {

using namespace chain;

template <class T>
T* data_of(const View& view) {
  return view.defined() ? view.as<T>() : nullptr;
}

// A number that divides that of the warps, so that all slots of a warp are of the same piece.
int64_t pieces_of(int64_t K) {
  int64_t pieces = gpu::ceil_div(K, kPieceColumns);
  while (kWarps % pieces != 0) ++pieces;
  return pieces;
}

bool fits(const DecodeLinear& k, int64_t blocks) {
  const int64_t K = k.x.size(1);
  if (K > kMostColumns) return false;
  const int64_t sums = gpu::ceil_div(k.out.size(1), blocks) * (k.swiglu ? 2 : 1) * pieces_of(K);
  return k.out.dtype == DType::bf16 && k.out.size(0) == 1 && k.out.size(1) > 0 && K % kPacket == 0 &&
         sums <= kMostSums && (!k.norm_weight.defined() || K <= kMostNormed) &&
         gpu::all_aligned(k.x, k.sum, k.delta, k.norm_weight, k.norm_bias, k.weight);
}

// Keys of width d_h beside values of the same width.
bool fits_heads(const DecodeAttend& k) {
  const DecodeAppend& append = k.append;
  const View &keys = k.attention.k, &values = k.attention.v;
  const int64_t d = keys.size(3), heads = keys.size(2), first = values.as<bf16>() - keys.as<bf16>();
  return !k.expand && d == values.size(3) && d <= kRowLanes * kPacket && d % (2 * kPacket) == 0 &&
         append.key_begin == 0 && append.key_heads == heads && append.q.size(2) == d && !append.norm_weight.defined() &&
         keys.stride(1) == values.stride(1) && keys.stride(2) == d && values.stride(2) == d && first == heads * d &&
         append.rows.size(1) == 2 * heads * d && append.q_out.data == k.attention.q.data;
}

// Rows of latents and rotated keys, read by all heads.
bool fits_latents(const DecodeAttend& k) {
  const DecodeAppend& append = k.append;
  const int64_t dc = k.attention.v.size(3), dr = append.q.size(2), dn = k.absorb->x.size(2);
  return k.expand && k.absorb->transpose && !k.expand->transpose && dc <= kMostLatent && dc % kPacket == 0 &&
         dr <= kMostRope && dn <= kMostNope && k.attention.k.size(2) == 1 && k.attention.k.size(3) == dc + dr &&
         append.key_begin == dc && append.key_heads == 1 && append.rows.size(1) == dc + dr &&
         k.attention.k.data == k.attention.v.data && gpu::all_aligned(k.absorb->weight, k.expand->weight) &&
         (!append.norm_weight.defined() || append.norm_weight.size(0) == dc) &&
         append.q.as<bf16>() - k.absorb->x.as<bf16>() == dn;
}

// Query heads of one key head read its rows apart, from the second-level cache. Bytes a layer may read again so; more
// than these take longer than the launches that the chain saves (9 us at 5.5 TB/s).
constexpr int64_t kMostRepeated = 48 << 20;

bool fits(const DecodeAttend& k, int64_t blocks) {
  const View &q = k.attention.q, &keys = k.attention.k;
  const int64_t row = 2 * (k.absorb ? keys.size(3) : keys.size(3) + k.attention.v.size(3));
  if ((q.size(1) - keys.size(2)) * keys.size(1) * row > kMostRepeated) return false;
  return q.size(1) * k.attention.partials.size(2) <= blocks && q.dtype == DType::bf16 && q.size(0) == 1 &&
         gpu::all_aligned(k.append.rows, k.append.cache, k.append.q) && k.append.cache.data == k.attention.k.data &&
         k.append.q.size(2) % 2 == 0 && gpu::all_aligned(k.append.norm_weight) &&
         (k.absorb ? fits_latents(k) : fits_heads(k));
}

Product product_of(const DecodeLinear& k) {
  const int64_t K = k.x.size(1), pieces = pieces_of(K);
  return {.out = k.out.as<bf16>(),
          .sum = data_of<bf16>(k.sum),
          .x = k.x.as<bf16>(),
          .delta = data_of<bf16>(k.delta),
          .norm_weight = data_of<bf16>(k.norm_weight),
          .norm_bias = data_of<bf16>(k.norm_bias),
          .weight = k.weight.as<bf16>(),
          .ids = data_of<int32_t>(k.ids),
          .partials = nullptr,
          .x_stride = k.x.stride(0),
          .weight_stride = k.weight.stride(0),
          .N = static_cast<int>(k.out.size(1)),
          .K = static_cast<int>(K),
          .pieces = static_cast<int>(pieces),
          .piece_columns = static_cast<int>(gpu::ceil_div(K / kPacket, pieces) * kPacket),
          .splits = 0,
          .head_width = 0,
          .eps = static_cast<float>(k.eps),
          .swiglu = k.swiglu};
}

Attend attend_of(const DecodeAttend& k) {
  const DecodeAttention& attention = k.attention;
  const View &keys = attention.k, &values = attention.v;
  const bool latent = k.absorb.has_value();
  return {.row = keys.as<bf16>(),
          .q = latent ? k.absorb->x.as<bf16>() : k.append.q.as<bf16>(),
          .newest = k.append.rows.as<bf16>(),
          .norm_weight = data_of<bf16>(k.append.norm_weight),
          .up = latent ? k.absorb->weight.as<bf16>() : nullptr,
          .cos = k.append.cos.as<float>(),
          .sin = k.append.sin.as<float>(),
          .position = k.append.positions.as<int32_t>(),
          .partials = attention.partials.as<float>(),
          .row_stride = keys.stride(1),
          .q_head = k.append.q.stride(1),
          .up_head = latent ? k.absorb->weight.stride(0) : 0,
          .up_row = latent ? k.absorb->weight.stride(1) : 0,
          .H = static_cast<int>(attention.q.size(1)),
          .group = static_cast<int>(attention.q.size(1) / keys.size(2)),
          .splits = static_cast<int>(attention.partials.size(2)),
          .width = static_cast<int>(values.size(3)),
          .k_head = static_cast<int>(keys.stride(2)),
          .v_first = static_cast<int>(values.as<bf16>() - keys.as<bf16>()),
          .v_head = static_cast<int>(values.stride(2)),
          .rope_first = latent ? static_cast<int>(k.absorb->x.size(2)) : 0,
          .half = static_cast<int>(k.append.q.size(2) / 2),
          .scale = static_cast<float>(attention.scale) * decode::kLog2E,
          .eps = static_cast<float>(k.append.eps),
          .interleave = k.append.interleave};
}

Expand expand_of(const DecodeAttend& k) {
  const View& out = k.out();
  return {.out = out.as<bf16>(),
          .up = k.expand ? k.expand->weight.as<bf16>() : nullptr,
          .partials = k.attention.partials.as<float>(),
          .out_head = out.stride(1),
          .up_head = k.expand ? k.expand->weight.stride(0) : 0,
          .up_row = k.expand ? k.expand->weight.stride(1) : 0,
          .H = static_cast<int>(out.size(1)),
          .splits = static_cast<int>(k.attention.partials.size(2)),
          .width = static_cast<int>(k.attention.v.size(3)),
          .outputs = static_cast<int>(out.size(2))};
}

// Whether a product reads all of a part's result, so that it can add the splits itself.
bool reads_result(const DecodeLinear& product, const DecodeAttend& attend) {
  const View& out = attend.combine.out;
  return !attend.expand && product.x.data == out.data && !product.ids.defined() && !product.sum.defined() &&
         !product.delta.defined() && !product.norm_weight.defined() && product.x.size(1) == out.size(1) * out.size(2) &&
         out.stride(1) == out.size(2);
}

// The parts as the device takes them.
std::vector<Part> plan(const std::vector<ChainPart>& parts) {
  std::vector<Part> out;
  const DecodeAttend* before = nullptr;  // attention whose splits are not added yet
  const auto add_splits = [&] {
    if (before) out.push_back({.kind = Kind::expand, .expand = expand_of(*before)});
    before = nullptr;
  };
  for (const ChainPart& part : parts) {
    if (const auto* attend = std::get_if<DecodeAttend>(&part)) {
      add_splits();
      out.push_back({.kind = attend->absorb ? Kind::latent : Kind::heads, .attend = attend_of(*attend)});
      before = attend;
      continue;
    }
    const auto& product = std::get<DecodeLinear>(part);
    Product own = product_of(product);
    if (before && reads_result(product, *before)) {
      own.partials = before->attention.partials.as<float>();
      own.splits = static_cast<int>(before->attention.partials.size(2));
      own.head_width = static_cast<int>(before->combine.out.size(2));
      before = nullptr;
    }
    add_splits();
    out.push_back({.kind = Kind::product, .product = own});
  }
  add_splits();
  return out;
}

}  // namespace

bool chain_takes(CudaContext& context, const ChainPart& part) {
  if (!hopper::kBuilt || context.state().capability != 90) return false;
  if (const auto* attend = std::get_if<DecodeAttend>(&part)) return fits(*attend, context.state().multiprocessors);
  return fits(std::get<DecodeLinear>(part), context.state().multiprocessors);
}

void run(CudaContext& context, const DecodeChain& k) {
  for (const ChainPart& part : k.parts) {
    check(chain_takes(context, part), "decode_chain: a part does not fit; see chain_takes");
    if (const auto* product = std::get_if<DecodeLinear>(&part)) check_decode_linear(*product);
  }
  const std::vector<Part> parts = plan(k.parts);
  Args a{};
  a.turn = reinterpret_cast<uint32_t*>(k.turn.as<int32_t>());
  Kind attention = Kind::product;
  const auto start = [&] {
    const auto kernel = attention == Kind::heads    ? chain_kernel<Kind::heads>
                        : attention == Kind::latent ? chain_kernel<Kind::latent>
                                                    : chain_kernel<Kind::product>;
    launch_chained(context, DecodeChain::kName, static_cast<unsigned>(context.state().multiprocessors), kAllThreads,
                   kMemoryBytes, kernel, a);
    a.count = 0;
    attention = Kind::product;
  };
  for (const Part& part : parts) {
    const bool attends = part.kind == Kind::heads || part.kind == Kind::latent;
    const bool other = attends && attention != Kind::product && attention != part.kind;
    if (a.count == kMostParts || other) start();
    if (attends) attention = part.kind;
    // Splits may be added that attention of the launch before left.
    const bool adds = part.kind == Kind::expand || (part.kind == Kind::product && part.product.partials);
    if (adds && attention == Kind::product) attention = Kind::heads;
    a.parts[a.count++] = part;
  }
  start();
}

}  // namespace egmla
