#include "io/config_keys.h"

#include <algorithm>
#include <numeric>

// A row of the table: the key's name is the field's path in Config, so the two cannot drift apart.
#define EGMLA_KEY(path, ...) \
  make_key(                  \
      #path, [](auto& config) -> auto& { return config.path; }, __VA_ARGS__)

namespace egmla {
namespace {

const EnumNames<DeviceChoice> kDevices = {
    {DeviceChoice::automatic, "auto"}, {DeviceChoice::cpu, "cpu"}, {DeviceChoice::cuda, "cuda"}};
const EnumNames<Precision> kPrecisions = {
    {Precision::automatic, "auto"}, {Precision::fp32, "fp32"}, {Precision::bf16, "bf16"}, {Precision::fp8, "fp8"}};
const EnumNames<AttentionBackend> kAttentionBackends = {
    {AttentionBackend::automatic, "auto"}, {AttentionBackend::native, "native"}, {AttentionBackend::cudnn, "cudnn"}};
const EnumNames<GateFolding> kGateFoldings = {
    {GateFolding::automatic, "auto"}, {GateFolding::always, "always"}, {GateFolding::never, "never"}};
const EnumNames<Recompute> kRecomputes = {
    {Recompute::none, "none"}, {Recompute::light, "light"}, {Recompute::full, "full"}};
const EnumNames<AttentionType> kAttentionTypes = {
    {AttentionType::mha, "mha"}, {AttentionType::mla, "mla"}, {AttentionType::egmla, "egmla"}};
const EnumNames<NormType> kNorms = {{NormType::rmsnorm, "rmsnorm"}, {NormType::layernorm, "layernorm"}};
const EnumNames<FfnType> kFfns = {{FfnType::swiglu, "swiglu"}, {FfnType::gelu, "gelu"}};
const EnumNames<GatePosition> kGatePositions = {{GatePosition::after_up, "after_up"}, {GatePosition::latent, "latent"}};
const EnumNames<GateTargets> kGateTargets = {{GateTargets::kv, "kv"}, {GateTargets::k, "k"}, {GateTargets::v, "v"}};
const EnumNames<GateNormType> kGateNorms = {{GateNormType::joint, "joint"},
                                            {GateNormType::separate, "separate"},
                                            {GateNormType::per_head, "per_head"},
                                            {GateNormType::none, "none"}};
const EnumNames<GateActivationType> kGateActivations = {{GateActivationType::none, "none"},
                                                        {GateActivationType::sigmoid, "sigmoid"},
                                                        {GateActivationType::tanh, "tanh"},
                                                        {GateActivationType::silu, "silu"}};
const EnumNames<DataOrder> kDataOrders = {{DataOrder::shuffled, "shuffled"}, {DataOrder::sequential, "sequential"}};
const EnumNames<OptimizerType> kOptimizers = {{OptimizerType::adamw, "adamw"}};
const EnumNames<StateDtype> kStateDtypes = {{StateDtype::fp32, "fp32"}, {StateDtype::bf16, "bf16"}};
const EnumNames<ScheduleType> kSchedules = {{ScheduleType::cosine, "cosine"},
                                            {ScheduleType::linear, "linear"},
                                            {ScheduleType::wsd, "wsd"},
                                            {ScheduleType::constant, "constant"}};

template <class E>
std::string type_text(const E&, const EnumNames<E>& names) {
  return type_name(names);
}
template <class T, class... Limits>
std::string type_text(const T& value, const Limits&... limits) {
  return type_name(value, limits...);
}

template <class E>
std::string value_text(const E& value, const EnumNames<E>& names) {
  return write_value(value, names);
}
template <class T, class... Limits>
std::string value_text(const T& value, const Limits&...) {
  return write_value(value);
}

// `field` gives the value in a Config, const or not; `limits` is a number's range or an enumeration's names.
template <class Field, class... Limits>
ConfigKey make_key(const char* name, Field field, const char* description, const Limits&... limits) {
  ConfigKey key;
  key.name = name;
  key.description = description;
  key.read = [=](const YAML::Node& node, Config& config) { return read_value(node, field(config), limits...); };
  key.write = [=](const Config& config) { return value_text(field(config), limits...); };
  const Config defaults;
  key.type = type_text(field(defaults), limits...);
  key.fallback = key.write(defaults);
  return key;
}

// The same row with no default: the key must be given.
ConfigKey required(ConfigKey key) {
  key.required = true;
  key.fallback = "required";
  return key;
}

// The same row with a default that is computed, in words.
ConfigKey computed(ConfigKey key, const char* fallback) {
  key.fallback = fallback;
  return key;
}

// Steps or tokens that are -1 until they are given or computed; -1 is no value of the user's.
ConfigKey absent_below_zero(ConfigKey key, const char* fallback) {
  key.write = [write = key.write](const Config& config) {
    const std::string text = write(config);
    return text == "-1" ? "null" : text;
  };
  return computed(std::move(key), fallback);
}

ConfigKey with_scope(Scope scope, ConfigKey key) {
  key.scope = scope;
  return key;
}

using Rows = std::vector<ConfigKey>;

Rows run_keys() {
  return {
      computed(EGMLA_KEY(run.name, "name in reports; no slash"), "the file's name"),
      computed(EGMLA_KEY(run.dir, "run directory: metrics, checkpoints, samples"), "runs/NAME"),
      EGMLA_KEY(run.seed, "seed of weights, data order, sampling and stochastic rounding", at_least(0)),
      EGMLA_KEY(run.device, "auto: a GPU where the build and the machine have one", kDevices),
      EGMLA_KEY(run.precision,
                "compute type; master weights and gradients stay fp32; fp8: bf16 with the large products of training "
                "in e4m3, on Hopper; auto: bf16 on a GPU, fp32 on the CPU",
                kPrecisions),
      EGMLA_KEY(run.attention_backend, "attention kernels on a GPU; auto: the faster deterministic one",
                kAttentionBackends),
      EGMLA_KEY(
          run.fold_gate,
          "decoding multiplies EG-MLA's gate out into a table of all tokens; auto: where it pays and memory allows",
          kGateFoldings),
      EGMLA_KEY(run.init_from, "checkpoint or Hugging Face directory whose weights start the run; null: random"),
      EGMLA_KEY(run.peak_tflops, "dense bf16 TFLOP/s of the device, for MFU; 0: from the table of known cards",
                at_least(0)),
      EGMLA_KEY(run.memory_limit_gib, "most that tensors may take of the device's memory, in GiB; 0: all of it",
                at_least(0)),
  };
}

Rows model_keys() {
  return {
      required(EGMLA_KEY(model.hidden_size, "model width D", at_least(1))),
      required(EGMLA_KEY(model.intermediate_size, "width of the feed-forward layer F", at_least(1))),
      required(EGMLA_KEY(model.num_hidden_layers, "layers L", at_least(1))),
      required(EGMLA_KEY(model.num_attention_heads, "query heads H", at_least(1))),
      EGMLA_KEY(model.vocab_size, "vocabulary V; 0: the size of data.tokenizer", at_least(0)),
      computed(EGMLA_KEY(model.max_position_embeddings, "longest context in tokens", at_least(1)),
               "data.sequence_length"),
      EGMLA_KEY(model.norm, "norm before attention, before the feed-forward layer and at the end", kNorms),
      EGMLA_KEY(model.norm_eps, "epsilon of these norms; MLA's inner norms always use 1e-6", kPositive),
      EGMLA_KEY(model.ffn, "feed-forward layer: gated SiLU, or GELU by tanh", kFfns),
      EGMLA_KEY(model.rope_theta, "base of the rotary frequencies", kPositive),
      computed(EGMLA_KEY(model.rope_interleave, "rotate pairs (2p, 2p+1) instead of halves (p, p + d/2)"),
               "false for mha, true for mla and egmla"),
      EGMLA_KEY(model.tie_word_embeddings, "the output layer shares the embedding's weights"),
      EGMLA_KEY(model.initializer_range, "standard deviation of initial weights", kPositive),
  };
}

Rows attention_keys() {
  const Scope mha = Scope::mha, latent = Scope::latent;
  return {
      EGMLA_KEY(model.attention.type, "multi-head, latent (DeepSeek-V2), or embedding-gated latent attention",
                kAttentionTypes),
      with_scope(mha, computed(EGMLA_KEY(model.attention.num_key_value_heads, "key/value heads; 0: num_attention_heads",
                                         at_least(0)),
                               "num_attention_heads")),
      with_scope(mha, computed(EGMLA_KEY(model.attention.head_dim,
                                         "width of a head; 0: hidden_size / num_attention_heads", at_least(0)),
                               "hidden_size / num_attention_heads")),
      with_scope(latent,
                 EGMLA_KEY(model.attention.q_lora_rank, "width of a latent for queries; null: none", at_least(1))),
      with_scope(latent, EGMLA_KEY(model.attention.kv_lora_rank, "width of the cached latent d_c", at_least(1))),
      with_scope(latent, EGMLA_KEY(model.attention.qk_nope_head_dim, "query/key width of a head without position d_n",
                                   at_least(1))),
      with_scope(latent, EGMLA_KEY(model.attention.qk_rope_head_dim,
                                   "width of the rotated part d_r, one key shared by all heads; even", at_least(2))),
      with_scope(latent, EGMLA_KEY(model.attention.v_head_dim, "value width of a head d_v", at_least(1))),
  };
}

Rows gate_keys() {
  Rows rows = {
      EGMLA_KEY(model.attention.gate.embed_dim, "width of the gate's token table d_e; 0: no gate, exactly MLA",
                at_least(0)),
      EGMLA_KEY(model.attention.gate.position, "gate the up-projected keys and values, or the latent itself",
                kGatePositions),
      EGMLA_KEY(model.attention.gate.targets, "features that are gated and normalised", kGateTargets),
      EGMLA_KEY(model.attention.gate.norm,
                "LayerNorm behind the gate: over all features, K and V apart, each head, or none", kGateNorms),
      EGMLA_KEY(model.attention.gate.activation, "function on the gate before the product", kGateActivations),
      EGMLA_KEY(model.attention.gate.share_layers, "consecutive layers that share one table", at_least(1)),
      EGMLA_KEY(model.attention.gate.init_std, "standard deviation of the initial tables", at_least(0)),
      EGMLA_KEY(model.attention.gate.offset, "gate = activation(offset + projected embedding)", kAny),
      EGMLA_KEY(model.attention.gate.lr_scale, "learning rate of the tables relative to train.optimizer.lr",
                at_least(0)),
      EGMLA_KEY(model.attention.gate.weight_decay, "weight decay of the tables", at_least(0)),
  };
  for (ConfigKey& key : rows) key.scope = Scope::gate;
  return rows;
}

Rows data_keys() {
  return {
      required(EGMLA_KEY(data.train, "token shards to train on; globs; weight: share of the tokens drawn")),
      EGMLA_KEY(data.val, "token shards to evaluate on; empty: no evaluation"),
      EGMLA_KEY(data.tokenizer, "tokenizer.json, or GPT-2's encoder.json; null: token ids in, no text out"),
      required(EGMLA_KEY(data.sequence_length, "tokens in a training sequence T", at_least(1))),
      EGMLA_KEY(data.order, "sequential: the shards front to back as one stream", kDataOrders),
      EGMLA_KEY(data.mask_documents, "attention stays inside a document"),
  };
}

Rows train_keys() {
  return {
      absent_below_zero(EGMLA_KEY(train.max_steps, "steps of the whole run; give this or max_tokens", at_least(0)),
                        "from max_tokens, rounded up"),
      absent_below_zero(EGMLA_KEY(train.max_tokens, "tokens of the whole run; give this or max_steps", at_least(0)),
                        "null"),
      EGMLA_KEY(train.stop_at_step, "end this launch early at a step, the schedule unchanged; 0: off", at_least(0)),
      required(EGMLA_KEY(train.batch_tokens, "tokens of an optimizer step over all processes", at_least(1))),
      computed(EGMLA_KEY(train.micro_batch_size, "sequences of one forward pass B; 0: computed", at_least(0)),
               "largest divisor of the batch with at most 8192 tokens"),
      EGMLA_KEY(train.grad_clip, "largest norm of the gradient; 0: off", at_least(0)),
      EGMLA_KEY(train.skip_nonfinite, "leave out a step whose gradient is not finite instead of stopping"),
      EGMLA_KEY(train.spike.z,
                "a loss so many standard deviations above the mean of the steps before it sends the run back to its "
                "last checkpoint, without that batch; 0: off",
                at_least(0)),
      EGMLA_KEY(train.spike.window, "steps that the mean and the deviation are taken over", at_least(2)),
      EGMLA_KEY(train.spike.max_rollbacks, "returns in the whole run; later spikes are logged alone",
                (Range{.low = 0, .high = 16})),
      EGMLA_KEY(train.recompute, "activations computed again in backward to save memory", kRecomputes),
      EGMLA_KEY(train.profile,
                "print where a step's time goes by kernel: at the second step and at every tenth line on the console"),
  };
}

Rows optimizer_keys() {
  return {
      EGMLA_KEY(train.optimizer.type, "optimizer", kOptimizers),
      EGMLA_KEY(train.optimizer.lr, "highest learning rate", at_least(0)),
      EGMLA_KEY(train.optimizer.betas, "decay rates of the two moments",
                (Range{.low = 0, .high = 1, .high_open = true})),
      EGMLA_KEY(train.optimizer.eps, "added to the root of the second moment", kPositive),
      EGMLA_KEY(train.optimizer.weight_decay, "decoupled weight decay, on matrices only", at_least(0)),
      EGMLA_KEY(train.optimizer.state_dtype,
                "type of the moments in memory; bf16: half the memory, rounded stochastically", kStateDtypes),
      EGMLA_KEY(train.schedule.type, "how the learning rate falls after the warm-up", kSchedules),
      EGMLA_KEY(train.schedule.warmup_steps, "steps of linear warm-up", at_least(0)),
      EGMLA_KEY(
          train.schedule.decay_steps,
          "cosine, linear: step of the final rate, 0: max_steps; wsd: length of the decay in steps, 0: a fifth of "
          "max_steps",
          at_least(0)),
      EGMLA_KEY(train.schedule.final_lr_fraction, "final learning rate relative to the highest", kFraction),
  };
}

Rows cadence_keys() {
  return {
      EGMLA_KEY(train.checkpoint.every, "steps between checkpoints; 0: only at the end", at_least(0)),
      EGMLA_KEY(train.checkpoint.keep_last, "newest checkpoints kept", at_least(1)),
      EGMLA_KEY(train.checkpoint.keep_every, "checkpoints at multiples of this step are kept for good; 0: none",
                at_least(0)),
      EGMLA_KEY(train.eval.every, "steps between evaluations; 0: never", at_least(0)),
      EGMLA_KEY(train.eval.batches, "micro-batches of an evaluation while training; 0: all of data.val", at_least(0)),
      EGMLA_KEY(train.sample.every, "steps between text samples; 0: never; needs data.tokenizer", at_least(0)),
      EGMLA_KEY(train.sample.prompt, "text that samples continue"),
      EGMLA_KEY(train.log.every, "steps between lines on the console; metrics.jsonl holds every step", at_least(1)),
  };
}

Rows parallel_keys() {
  return {
      EGMLA_KEY(parallel.zero_stage, "1: each process keeps its share of the optimizer state",
                (Range{.low = 0, .high = 1})),
      EGMLA_KEY(parallel.bucket_mb, "gradients reduced at a time, MiB", at_least(1)),
      EGMLA_KEY(parallel.check_every, "steps between comparisons of the weights of all processes; 0: never",
                at_least(0)),
      EGMLA_KEY(parallel.deadlines.start, "longest wait for all processes to start, seconds", kPositive),
      EGMLA_KEY(parallel.deadlines.step, "longest wait inside a step, seconds", kPositive),
      EGMLA_KEY(parallel.deadlines.checkpoint, "longest wait for a checkpoint, seconds", kPositive),
  };
}

Rows all_keys() {
  Rows all;
  for (const auto& rows : {run_keys(), model_keys(), attention_keys(), gate_keys(), data_keys(), train_keys(),
                           optimizer_keys(), cadence_keys(), parallel_keys()}) {
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

// Levenshtein's distance.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

std::string_view last_part(std::string_view name) {
  return name.substr(name.rfind('.') + 1);
}

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = all_keys();
  return keys;
}

const ConfigKey* find_config_key(std::string_view name) {
  const auto& keys = config_keys();
  const auto found = std::find_if(keys.begin(), keys.end(), [&](const ConfigKey& key) { return key.name == name; });
  return found == keys.end() ? nullptr : &*found;
}

bool is_config_section(std::string_view name) {
  const std::string prefix = std::string(name) + ".";
  const auto& keys = config_keys();
  return std::any_of(keys.begin(), keys.end(), [&](const ConfigKey& key) { return key.name.starts_with(prefix); });
}

// The last part counts more than its place: train.lr means train.optimizer.lr.
std::string nearest_config_key(std::string_view name) {
  std::string best;
  size_t least = std::string::npos;
  const auto consider = [&](std::string_view candidate) {
    const size_t distance = edit_distance(name, candidate) + 8 * edit_distance(last_part(name), last_part(candidate));
    if (distance < least) {
      least = distance;
      best = candidate;
    }
  };
  for (const ConfigKey& key : config_keys()) {
    const std::string_view full = key.name;
    for (size_t dot = full.find('.'); dot != full.npos; dot = full.find('.', dot + 1)) consider(full.substr(0, dot));
    consider(full);
  }
  return best;
}

bool in_scope(Scope scope, AttentionType attention) {
  switch (scope) {
    case Scope::mha:
      return attention == AttentionType::mha;
    case Scope::latent:
      return attention != AttentionType::mha;
    case Scope::gate:
      return attention == AttentionType::egmla;
    default:
      return true;
  }
}

const char* attention_type_name(AttentionType type) {
  return kAttentionTypes[static_cast<size_t>(type)].second;
}

}  // namespace egmla
