#include "lab/inspect.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nn/transformer.h"
#include "train/memory_plan.h"

namespace egmla {
namespace {

bool plans_for_cpu(const RunConfig& run) {
  if (run.device != DeviceChoice::automatic) return run.device == DeviceChoice::cpu;
#ifdef EGMLA_WITH_CUDA
  return cuda_device_count() == 0;
#else
  return true;
#endif
}

void count_parameters(const ParameterStore& store, Inspection& out) {
  for (const NamedTensor& tensor : store.tensors()) {
    const auto in = [&](const char* part) { return tensor.path.find(part) != std::string::npos; };
    int64_t& group = tensor.group == ParameterGroup::gate_table ? out.gate_tables
                     : tensor.group == ParameterGroup::vector   ? out.norms
                     : in(".self_attn.")                        ? out.attention
                     : in(".mlp.")                              ? out.ffn
                                                                : out.embedding;
    group += tensor.elements();
  }
  out.parameters = store.elements();
}

std::string gib(int64_t bytes) {
  return fmt::format("{:.3f} GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace

Inspection inspect(const Config& config, int processes) {
  check_usage(config.model.vocab_size > 0,
              "model.vocab_size: inspect opens no tokenizer; give the size, for example model.vocab_size=50257");
  Inspection out;
  out.for_cpu = plans_for_cpu(config.run);
  const Precision precision = config.run.precision;
  const bool fp32 = precision == Precision::fp32 || (precision == Precision::automatic && out.for_cpu);
  const DType dtype = fp32 ? DType::f32 : DType::bf16;
  out.dtype = precision == Precision::fp8 ? "fp8" : name_of(dtype);

  const Transformer model(config.model);
  count_parameters(model.parameters(), out);
  out.memory = plan_memory(config, out.for_cpu, dtype, config.train.micro_batch_size, processes);
  out.processes = processes;
  out.matmul = model.matmul_parameters();
  out.cache_elements = model.cache_elements();
  out.cache_bytes = out.cache_elements * static_cast<int64_t>(size_of(dtype));
  out.cache_statistics_bytes = model.cache_statistics() * static_cast<int64_t>(sizeof(float));
  const int64_t width = config.model.attention.type == AttentionType::mha ? config.model.mha_head_dim()
                                                                          : config.model.attention.v_head_dim;
  out.mha_cache_elements = 2 * config.model.num_hidden_layers * config.model.num_attention_heads * width;
  out.flops_per_token = model.flops_per_token(config.data.sequence_length);
  return out;
}

std::string inspection_text(const Config& config, const Inspection& found) {
  std::string out;
  const auto line = [&](const std::string& name, const std::string& value) {
    out += fmt::format("{:<22}{:>20}\n", name, value);
  };
  const auto number = [&](const std::string& name, int64_t value) { line(name, fmt::format("{}", value)); };
  number("parameters", found.parameters);
  number("  embedding and head", found.embedding);
  number("  attention", found.attention);
  number("  feed-forward", found.ffn);
  number("  norms", found.norms);
  number("  gate tables", found.gate_tables);
  number("  in matrix products", found.matmul);
  number("cache per token", found.cache_elements);
  line("  against MHA",
       fmt::format(
           "{:+.1f}%",
           100.0 * (static_cast<double>(found.cache_elements) / static_cast<double>(found.mha_cache_elements) - 1)));
  number("  bytes", found.cache_bytes);
  if (found.cache_statistics_bytes) number("  bytes of statistics", found.cache_statistics_bytes);
  line("FLOPs per token", fmt::format("{:.4g}", found.flops_per_token));
  const std::string share =
      found.processes > 1 ? fmt::format(", one of {}, ZeRO {}", found.processes, config.parallel.zero_stage) : "";
  line(fmt::format("memory on {}, {}{}", found.for_cpu ? "cpu" : "cuda", found.dtype, share), "");
  line("  weights", gib(found.memory.weights));
  line("  gradients", gib(found.memory.gradients));
  line("  optimizer", gib(found.memory.optimizer));
  line(fmt::format("  activations, B {}", config.train.micro_batch_size), gib(found.memory.activations));
  return out;
}

std::string inspection_json(const Inspection& found) {
  const nlohmann::ordered_json out = {{"parameters",
                                       {{"total", found.parameters},
                                        {"gate_tables", found.gate_tables},
                                        {"matmul", found.matmul},
                                        {"embedding", found.embedding},
                                        {"attention", found.attention},
                                        {"ffn", found.ffn},
                                        {"norms", found.norms}}},
                                      {"cache",
                                       {{"elements_per_token", found.cache_elements},
                                        {"bytes_per_token", found.cache_bytes},
                                        {"statistics_bytes_per_token", found.cache_statistics_bytes},
                                        {"mha_elements_per_token", found.mha_cache_elements}}},
                                      {"flops", {{"per_token", found.flops_per_token}}},
                                      {"memory",
                                       {{"weights", found.memory.weights},
                                        {"gradients", found.memory.gradients},
                                        {"optimizer", found.memory.optimizer},
                                        {"activations", found.memory.activations},
                                        {"processes", found.processes},
                                        {"device", found.for_cpu ? "cpu" : "cuda"},
                                        {"dtype", found.dtype}}}};
  return out.dump();
}

}  // namespace egmla
