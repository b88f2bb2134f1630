#include <algorithm>
#include <utility>

#include "kernels/decode_chain.h"

namespace egmla {
namespace {

template <class... Functions>
struct Overload : Functions... {
  using Functions::operator()...;
};

// The kernels of a part, in their order.
template <class F>
void for_kernels(const ChainPart& part, F&& function) {
  const auto of_attention = [&](const DecodeAttend& k) {
    function(k.append);
    if (k.absorb) function(*k.absorb);
    function(k.attention);
    function(k.combine);
    if (k.expand) function(*k.expand);
  };
  std::visit(Overload{function, of_attention}, part);
}

}  // namespace

bool chain_takes(CpuContext&, const ChainPart&) {
  return false;
}

bool chain_takes(PlanContext&, const ChainPart&) {
  return false;
}

bool chain_takes(Context& context, const ChainPart& part) {
  return context.visit([&](auto& backend) { return chain_takes(backend, part); });
}

void launch_chain(Context& context, const std::vector<ChainPart>& parts, const View& turn) {
  DecodeChain chain{.turn = turn};
  const auto launch_part = [&](const ChainPart& part) {
    for_kernels(part, [&](const auto& kernel) { launch(context, kernel); });
  };
  const auto launch_taken = [&] {
    const DecodeChain taken{.parts = std::exchange(chain.parts, {}), .turn = turn};
    // A product alone has a kernel that does not meet.
    if (taken.parts.size() == 1 && std::holds_alternative<DecodeLinear>(taken.parts.front()))
      return launch_part(taken.parts.front());
    if (!taken.parts.empty()) launch(context, taken);
  };
  for (const ChainPart& part : parts) {
    if (chain_takes(context, part)) {
      chain.parts.push_back(part);
      continue;
    }
    launch_taken();
    launch_part(part);
  }
  launch_taken();
}

KernelViews views_of(const DecodeChain& k) {
  KernelViews all;
  const auto add = [&](const KernelViews& views, bool results) {
    if (results) all.written.insert(all.written.end(), views.written.begin(), views.written.end());
    all.read.insert(all.read.end(), views.read.begin(), views.read.end());
  };
  for (const ChainPart& part : k.parts) {
    if (const auto* product = std::get_if<DecodeLinear>(&part)) add(views_of(*product), true);
    if (const auto* attend = std::get_if<DecodeAttend>(&part)) {
      all.written.push_back({"cache", attend->append.cache});
      all.written.push_back({"out", attend->out()});
      for_kernels(part, [&](const auto& kernel) { add(views_of(kernel), false); });
    }
  }
  return all;
}

int64_t bytes_of(const DecodeChain& k) {
  int64_t sum = 0;
  for (const ChainPart& part : k.parts) for_kernels(part, [&](const auto& kernel) { sum += bytes_of(kernel); });
  return sum;
}

std::string label_of(const DecodeChain& k) {
  constexpr size_t kNamed = 6;
  std::string out = DecodeChain::kName;
  if (k.parts.size() > kNamed) {
    const auto attentions = std::count_if(k.parts.begin(), k.parts.end(), [](const ChainPart& part) {
      return std::holds_alternative<DecodeAttend>(part);
    });
    return fmt::format("{} {} products, {} attentions", out, std::ssize(k.parts) - attentions, attentions);
  }
  for (const ChainPart& part : k.parts) {
    out += &part == k.parts.data() ? " " : ", ";
    if (const auto* product = std::get_if<DecodeLinear>(&part))
      out += label_of(*product).substr(std::string(DecodeLinear::kName).size() + 1);
    else
      out += "attention";
  }
  return out;
}

void run(CpuContext& context, const DecodeChain& k) {
  for (const ChainPart& part : k.parts) for_kernels(part, [&](const auto& kernel) { run(context, kernel); });
}

}  // namespace egmla
