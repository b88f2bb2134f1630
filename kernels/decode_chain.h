// A decoding step in one piece: products (DecodeLinear) and the attention of layers, each of which may read what those
// before it wrote. For one sequence on Hopper a single kernel runs as many of them as it can take; elsewhere they run
// one by one.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/decode_attention.h"
#include "kernels/decode_cache.h"
#include "kernels/decode_heads.h"
#include "kernels/decode_linear.h"

namespace egmla {

// Everything between a layer's projections: the new token's row is appended, attention reaches over the cache, and MLA
// goes to latents before (q^C W^UK) and comes back from them behind (W^UV).
struct DecodeAttend {
  DecodeAppend append;
  std::optional<HeadLinear> absorb{};  // out: the first columns of attention.q
  DecodeAttention attention;
  DecodeCombine combine;
  std::optional<HeadLinear> expand{};

  const View& out() const { return expand ? expand->out : combine.out; }
};

using ChainPart = std::variant<DecodeLinear, DecodeAttend>;

// What stands between parts (rotated queries, partials, a result that the next part alone reads) may stay unwritten.
struct DecodeChain {
  static constexpr const char* kName = "decode_chain";
  std::vector<ChainPart> parts{};
  View turn;  // [1] i32, zero before its first use: how often the kernel's blocks have met
};

// Whether the kernel of a chain can run this part; others are launched on their own.
bool chain_takes(Context& context, const ChainPart& part);
bool chain_takes(CpuContext& context, const ChainPart& part);
bool chain_takes(PlanContext& context, const ChainPart& part);
#ifdef EGMLA_WITH_CUDA
bool chain_takes(CudaContext& context, const ChainPart& part);
#endif

// Launches parts in their order, neighbours that a chain takes together.
void launch_chain(Context& context, const std::vector<ChainPart>& parts, const View& turn);

KernelViews views_of(const DecodeChain& k);
int64_t bytes_of(const DecodeChain& k);
// "decode_chain 1792x1792, 9728x1792 swiglu, attention": weights of products; long chains by their counts.
std::string label_of(const DecodeChain& k);

EGMLA_DECLARE_KERNEL(DecodeChain);

}  // namespace egmla
