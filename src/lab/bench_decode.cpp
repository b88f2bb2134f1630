#include "lab/bench_decode.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "infer/batch_decoder.h"
#include "infer/device.h"
#include "io/config_keys.h"
#include "lab/bench_tools.h"

namespace egmla {
namespace {

constexpr int64_t kWarmUps = 4;          // plain, recorded, replayed
constexpr int64_t kPrefill = 1024;       // tokens at a time, so that a full card has room for it
constexpr int64_t kReserve = 3ll << 29;  // bytes left for prefill and the libraries: 1.5 GiB
constexpr double kMs = 1e3, kGiga = 1e9, kTera = 1e12;

std::vector<int32_t> random_prompt(const ModelConfig& model, int64_t length) {
  std::vector<int32_t> ids(static_cast<size_t>(length));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(uniform(1, i) * static_cast<double>(model.vocab_size));
  return ids;
}

DecodeFloor floor_of(const Transformer& model, const DecodeTiming& t, const DecodeReport& report) {
  const double tokens = static_cast<double>(t.batch * t.context), size = static_cast<double>(size_of(model.dtype()));
  const GateConfig& gate = model.config().attention.gate;
  // Folding spares W^UE.
  const int64_t spared = t.folded ? model.folded_features() * gate.embed_dim : 0;
  const double weights = static_cast<double>(model.matmul_parameters() - spared);
  DecodeFloor out;
  out.weights_gb = weights * size / kGiga;
  out.cache_gb = tokens * static_cast<double>(report.cache_bytes_per_token + report.statistics_bytes_per_token) / kGiga;
  out.tables_gb = t.folded ? tokens * static_cast<double>(model.folded_features()) * size / kGiga : 0;
  out.tflop = (2 * weights * static_cast<double>(t.batch) + tokens * model.decode_flops(t.folded)) / kTera;
  out.weights_ms = kMs * out.weights_gb / report.gb_per_s;
  out.cache_ms = kMs * out.cache_gb / report.gb_per_s;
  out.tables_ms = kMs * out.tables_gb / report.gb_per_s;
  if (report.tflops > 0) out.flops_ms = kMs * out.tflop / report.tflops;
  return out;
}

int64_t capacity_of(int64_t context, int64_t steps) {
  return context + kWarmUps + steps;
}

// Every sequence holds `context` random tokens, and then steps. Profiled against the report's rates.
DecodeTiming time_decoding(Transformer& model, int64_t batch, int64_t context, const DecodeBenchOptions& options,
                           const DecodeReport& report) {
  const int64_t steps = options.steps;
  BatchDecoder decoder(model, batch, capacity_of(context, steps));
  const std::vector<int32_t> prompt = random_prompt(model.config(), context);
  for (int64_t first = 0; first < context; first += kPrefill)
    decoder.prefill(0, {prompt.begin() + first, prompt.begin() + std::min(context, first + kPrefill)});
  decoder.spread(context);
  std::vector<double> times;
  for (int64_t step = 0; step < kWarmUps + steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    decoder.step();
    decoder.most_probable();
    if (step >= kWarmUps)
      times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  DecodeTiming out{.batch = batch, .context = context};
  out.folded = decoder.folded();
  out.ms = kMs * times[times.size() / 2];
  out.tokens_per_s = kMs * static_cast<double>(batch) / out.ms;
  if (options.profile) out.profile = profile_decoding(model, decoder, context, report.gb_per_s, report.tflops);
  return out;
}

// Buffers of a step for one sequence more: from a small batch whose products are not fused, with scores for the whole
// context where those are written down.
int64_t buffers_per_sequence(Transformer& model, int64_t capacity) {
  constexpr int64_t kBatch = 16, kCapacity = 8;
  BatchDecoder decoder(model, kBatch, kCapacity);
  decoder.step();
  const int64_t scores = model.folded_features() > 0 ? model.config().num_attention_heads * 4 : 0;
  return (decoder.state().buffer_bytes() + kBatch - 1) / kBatch + scores * (capacity - kCapacity);
}

DecodeMemory memory_of(Transformer& model, const DecodeReport& report, int64_t capacity) {
  DecodeMemory out;
  out.buffers_per_sequence = buffers_per_sequence(model, capacity);
  const int64_t ids = model.config().gated() ? static_cast<int64_t>(sizeof(int32_t)) : 0;
  out.cache_per_sequence = capacity * (report.cache_bytes_per_token + report.statistics_bytes_per_token + ids);
  const ParameterStore& store = model.parameters();
  out.weights = static_cast<int64_t>((store.working().defined() ? store.working() : store.master()).view().bytes());
  out.tables = model.gate_folding() == GateFolding::always ? folded_gate_bytes(model) : 0;
  out.reserve = kReserve;
  out.free = store.context().free_memory();
  return out;
}

// The largest batch by that account, decoded to see that it fits. Tables are folded only where asked for.
DecodeTiming time_largest(Transformer& model, int64_t context, const DecodeBenchOptions& options,
                          const DecodeReport& report) {
  const GateFolding folding = model.gate_folding();
  if (folding == GateFolding::automatic) model.set_gate_folding(GateFolding::never);
  const DecodeMemory memory = memory_of(model, report, capacity_of(context, options.steps));
  const int64_t room = memory.free - memory.reserve - memory.tables;
  const int64_t batch = room / (memory.cache_per_sequence + memory.buffers_per_sequence);
  check_usage(batch > 0, "bench decode: no sequence of {} tokens fits into {} free bytes; ask for a smaller --context",
              context, memory.free);
  DecodeTiming out = time_decoding(model, batch, context, options, report);
  out.memory = memory;
  model.set_gate_folding(folding);
  return out;
}

nlohmann::ordered_json profile_json(const DecodeProfile& profile) {
  nlohmann::ordered_json kinds = nlohmann::ordered_json::array();
  for (const DecodeKind& k : profile.kinds)
    kinds.push_back({{"kernel", k.kernel}, {"calls", k.calls}, {"us", k.us}, {"mb", k.mb}, {"floor_us", k.floor_us}});
  return {{"step_us", profile.step_us}, {"kinds_us", profile.kinds_us()}, {"kinds", kinds}};
}

}  // namespace

DecodeReport bench_decode(Config config, const DecodeBenchOptions& options) {
  const int64_t longest = *std::max_element(options.contexts.begin(), options.contexts.end());
  config.model.max_position_embeddings =
      std::max(config.model.max_position_embeddings, capacity_of(longest, options.steps));
  const auto context = open_device(config.run.device);
  set_attention_backend(*context, config.run.attention_backend);
  const DType dtype = compute_dtype(config.run.precision, *context);
  DecodeReport report{.device = context->name(),
                      .dtype = name_of(dtype),
                      .name = config.run.name,
                      .attention = attention_type_name(config.model.attention.type)};
  report.gb_per_s = options.gb_per_s > 0 ? options.gb_per_s : copy_bandwidth(*context) / kGiga;
  report.tflops = context->is_cpu() ? 0 : options.tflops;

  Transformer model(config.model);
  model.allocate(*context, dtype);
  model.parameters().initialize(static_cast<uint64_t>(config.run.seed));
  model.parameters().drop_training_copies();
  model.set_gate_folding(config.run.fold_gate);
  report.parameters = model.parameters().elements();
  report.cache_bytes_per_token = model.cache_elements() * static_cast<int64_t>(size_of(dtype));
  report.statistics_bytes_per_token = model.cache_statistics() * static_cast<int64_t>(sizeof(float));
  const auto add = [&](DecodeTiming timing) {
    timing.floor = floor_of(model, timing, report);
    report.timings.push_back(timing);
  };
  for (const int64_t length : options.contexts) {
    for (const int64_t batch : options.batches) add(time_decoding(model, batch, length, options, report));
  }
  if (options.largest) add(time_largest(model, longest, options, report));
  return report;
}

std::string decode_report_text(const DecodeReport& r) {
  std::string out =
      fmt::format("{}, {}: {} ({}), {} parameters\n", r.device, r.dtype, r.name, r.attention, r.parameters);
  out += fmt::format("cache {} bytes per token, {} of statistics beside it; floors at {:.0f} GB/s",
                     r.cache_bytes_per_token, r.statistics_bytes_per_token, r.gb_per_s);
  out += r.tflops > 0 ? fmt::format(" and {:.0f} TFLOP/s\n", r.tflops) : "\n";
  out += fmt::format("{:>6} {:>8} {:>7} {:>10} {:>11} {:>9} {:>7}   {}\n", "batch", "context", "gate", "ms/step",
                     "tokens/s", "floor ms", "of it", "weights + cache + tables + FLOPs, ms");
  for (const DecodeTiming& t : r.timings) {
    out += fmt::format("{:>6} {:>8} {:>7} {:>10.3f} {:>11.1f} {:>9.3f} {:>6.1f}%   {:.3f} + {:.3f} + {:.3f} + {:.3f}\n",
                       t.batch, t.context, t.folded ? "folded" : "-", t.ms, t.tokens_per_s, t.floor.ms(),
                       100 * t.fraction(), t.floor.weights_ms, t.floor.cache_ms, t.floor.tables_ms, t.floor.flops_ms);
    if (!t.memory) continue;
    const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
    const DecodeMemory& m = *t.memory;
    out += fmt::format(
        "       the largest batch: {:.2f} GiB free beside {:.2f} of weights, less {:.2f} of tables and {:.2f} kept "
        "back; "
        "a sequence takes {:.4f} of cache and {:.4f} of buffers\n",
        gib(m.free), gib(m.weights), gib(m.tables), gib(m.reserve), gib(m.cache_per_sequence),
        gib(m.buffers_per_sequence));
  }
  for (const DecodeTiming& t : r.timings) {
    if (t.profile)
      out += fmt::format("\nbatch {}, context {}:\n{}", t.batch, t.context, decode_profile_text(*t.profile));
  }
  return out;
}

std::string decode_report_json(const DecodeReport& r) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const DecodeTiming& t : r.timings) {
    nlohmann::ordered_json row = {{"batch", t.batch},
                                  {"context", t.context},
                                  {"folded", t.folded},
                                  {"ms", t.ms},
                                  {"tokens_per_s", t.tokens_per_s},
                                  {"floor",
                                   {{"ms", t.floor.ms()},
                                    {"weights_ms", t.floor.weights_ms},
                                    {"cache_ms", t.floor.cache_ms},
                                    {"tables_ms", t.floor.tables_ms},
                                    {"flops_ms", t.floor.flops_ms},
                                    {"weights_gb", t.floor.weights_gb},
                                    {"cache_gb", t.floor.cache_gb},
                                    {"tables_gb", t.floor.tables_gb},
                                    {"tflop", t.floor.tflop}}},
                                  {"fraction", t.fraction()}};
    if (t.memory)
      row["largest"] = {{"free", t.memory->free},
                        {"weights", t.memory->weights},
                        {"tables", t.memory->tables},
                        {"reserve", t.memory->reserve},
                        {"cache_per_sequence", t.memory->cache_per_sequence},
                        {"buffers_per_sequence", t.memory->buffers_per_sequence}};
    if (t.profile) row["profile"] = profile_json(*t.profile);
    rows.push_back(row);
  }
  const nlohmann::ordered_json out = {
      {"name", r.name},
      {"attn", r.attention},
      {"device", r.device},
      {"dtype", r.dtype},
      {"params", r.parameters},
      {"cache",
       {{"bytes_per_token", r.cache_bytes_per_token}, {"statistics_bytes_per_token", r.statistics_bytes_per_token}}},
      {"gb_per_s", r.gb_per_s},
      {"tflops", r.tflops},
      {"rows", rows}};
  return out.dump() + "\n";
}

}  // namespace egmla
