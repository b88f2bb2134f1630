#include "lab/decode_profile.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/decode_chain.h"
#include "kernels/decode_gated.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/launch_log.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"
#include "lab/bench_tools.h"

namespace egmla {
namespace {

constexpr double kMicro = 1e6;
constexpr int64_t kLaunches = 128;  // at least, in the graph of a kind

template <class... Kernels>
bool launch_one_of(Context& context, const std::any& kernel) {
  const auto try_one = [&]<class Kernel>(const Kernel* found) {
    if (found) launch(context, *found);
    return found != nullptr;
  };
  return (try_one(std::any_cast<Kernels>(&kernel)) || ...);
}

void launch_again(Context& context, const LaunchRecord& record) {
  const bool found =
      launch_one_of<DecodeLinear, DecodeChain, DecodeAttention, DecodeCombine, DecodeAppend, HeadLinear,
                    GatedDecodeAttention, GateStatistics, GateForward, RecordToken, GreedyStep, Matmul, SwigluForward,
                    GeluForward, RmsNormForward, LayerNormForward, EmbeddingForward>(context, record.kernel);
  check(found, "decode profile: a step launched {}, which is not in the list of kernels it knows", record.label);
}

// FLOPs of a call; `attention`: of a layer's attention over the whole batch.
double flops_of(const LaunchRecord& record, double attention) {
  const auto of_linear = [](const DecodeLinear& k) {
    return 2.0 * static_cast<double>(k.out.size(0) * k.weight.elements());
  };
  if (const auto* k = std::any_cast<DecodeLinear>(&record.kernel)) return of_linear(*k);
  const auto of_heads = [](const HeadLinear& k) {
    return 2.0 * static_cast<double>(k.out.size(0) * k.weight.elements());
  };
  if (const auto* k = std::any_cast<DecodeChain>(&record.kernel)) {
    double sum = 0;
    for (const ChainPart& part : k->parts) {
      if (const auto* product = std::get_if<DecodeLinear>(&part)) sum += of_linear(*product);
      if (const auto* attend = std::get_if<DecodeAttend>(&part))
        sum += attention + (attend->absorb ? of_heads(*attend->absorb) + of_heads(*attend->expand) : 0);
    }
    return sum;
  }
  if (const auto* k = std::any_cast<HeadLinear>(&record.kernel)) return of_heads(*k);
  if (const auto* k = std::any_cast<Matmul>(&record.kernel))
    return 2.0 * static_cast<double>(k->out.size(0) * k->b.elements());
  const bool attends =
      std::any_cast<DecodeAttention>(&record.kernel) || std::any_cast<GatedDecodeAttention>(&record.kernel);
  return attends ? attention : 0;
}

// A chain apart: each attention, and the products between two as one.
std::vector<LaunchRecord> without_long_chains(const std::vector<LaunchRecord>& launches) {
  std::vector<LaunchRecord> out;
  for (const LaunchRecord& record : launches) {
    const auto* chain = std::any_cast<DecodeChain>(&record.kernel);
    if (!chain) {
      out.push_back(record);
      continue;
    }
    DecodeChain piece{.turn = chain->turn};
    const auto flush = [&] {
      if (!piece.parts.empty()) out.push_back({label_of(piece), views_of(piece), bytes_of(piece), piece});
      piece.parts.clear();
    };
    for (const ChainPart& part : chain->parts) {
      const bool attends = std::holds_alternative<DecodeAttend>(part);
      if (attends) flush();
      piece.parts.push_back(part);
      if (attends) flush();
    }
    flush();
  }
  return out;
}

}  // namespace

double DecodeProfile::kinds_us() const {
  double sum = 0;
  for (const DecodeKind& kind : kinds) sum += static_cast<double>(kind.calls) * kind.us;
  return sum;
}

DecodeProfile profile_decoding(const Transformer& model, BatchDecoder& decoder, int64_t context, double gb_per_s,
                               double tflops) {
  Context& device = decoder.state().context();
  DecodeProfile out;
  out.step_us = kMicro * seconds_of(device, [&] { decoder.step(); });
  std::vector<LaunchRecord> launches;
  {
    const LaunchLog log(device);
    decoder.step();
    launches = without_long_chains(log.launches());
  }
  const double attention = static_cast<double>(decoder.sequences() * context) * model.decode_flops(decoder.folded()) /
                           static_cast<double>(std::max<int64_t>(1, model.config().num_hidden_layers));
  std::vector<std::string> labels;
  for (const LaunchRecord& record : launches) {
    if (std::find(labels.begin(), labels.end(), record.label) == labels.end()) labels.push_back(record.label);
  }
  for (const std::string& label : labels) {
    DecodeKind kind{.kernel = label};
    std::vector<const LaunchRecord*> calls;
    for (const LaunchRecord& record : launches) {
      if (record.label != label) continue;
      calls.push_back(&record);
      kind.mb += 1e-6 * static_cast<double>(record.bytes);
      if (tflops > 0) kind.floor_us += kMicro * flops_of(record, attention) / (1e12 * tflops);
    }
    kind.calls = std::ssize(calls);
    const auto count = static_cast<double>(kind.calls);
    kind.mb /= count;
    kind.floor_us = kind.floor_us / count + 1e3 * kind.mb / gb_per_s;
    const int64_t rounds = std::max<int64_t>(1, kLaunches / kind.calls);
    decoder.spread(context);
    DeviceGraph graph;
    const double seconds = seconds_of(device, [&] {
      graph.run(device, [&] {
        for (int64_t round = 0; round < rounds; ++round) {
          for (const LaunchRecord* record : calls) launch_again(device, *record);
        }
      });
    });
    kind.us = kMicro * seconds / (static_cast<double>(rounds) * count);
    out.kinds.push_back(kind);
  }
  std::sort(out.kinds.begin(), out.kinds.end(), [](const DecodeKind& a, const DecodeKind& b) {
    return static_cast<double>(a.calls) * a.us > static_cast<double>(b.calls) * b.us;
  });
  decoder.spread(context);
  return out;
}

std::string decode_profile_text(const DecodeProfile& p) {
  std::string out = fmt::format("{:<38} {:>6} {:>9} {:>9} {:>9} {:>7} {:>7}\n", "kernel, repeated alone", "calls",
                                "us/call", "MB/call", "floor us", "of it", "share");
  const double sum = p.kinds_us();
  double floor = 0, mb = 0;
  int64_t calls = 0;
  for (const DecodeKind& k : p.kinds) {
    const auto count = static_cast<double>(k.calls);
    out += fmt::format("{:<38} {:>6} {:>9.2f} {:>9.3f} {:>9.2f} {:>6.1f}% {:>6.1f}%\n", k.kernel, k.calls, k.us, k.mb,
                       k.floor_us, 100 * k.floor_us / k.us, 100 * count * k.us / sum);
    floor += count * k.floor_us;
    mb += count * k.mb;
    calls += k.calls;
  }
  out += fmt::format("{:<38} {:>6} {:>9.1f} {:>9.1f} {:>9.1f} {:>6.1f}%\n", "all of them, one step", calls, sum, mb,
                     floor, 100 * floor / sum);
  out += fmt::format("{:<38} {:>6} {:>9.1f} {:>29.1f}%\n", "the step, replayed without a pause", "", p.step_us,
                     100 * floor / p.step_us);
  return out;
}

}  // namespace egmla
