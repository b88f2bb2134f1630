#include "io/config_rules.h"

#include <initializer_list>

#include "core/check.h"
#include "io/config_keys.h"

namespace egmla {
namespace {

class Rules {
 public:
  Rules(const Config& config, const std::string& name, const PlaceOf& place_of)
      : config_(config), name_(name), place_of_(place_of) {}

  void check_all() const {
    check_required();
    check_scopes();
    check_shape();
    if (config_.model.attention.type == AttentionType::mha) check_mha();
    if (config_.model.attention.type != AttentionType::mha) check_latent();
    if (config_.model.attention.type == AttentionType::egmla) check_gate();
    check_run();
    check_batch();
    check_length();
    check_schedule();
  }

 private:
  // The message begins with the place of the first of `keys` that was given.
  template <class... Args>
  void rule(bool ok, std::initializer_list<const char*> keys, fmt::format_string<Args...> format,
            Args&&... args) const {
    if (ok) return;
    std::string place;
    for (const char* key : keys) place = place.empty() ? place_of_(key) : place;
    fail_usage("{}: {}", place.empty() ? name_ : place, fmt::format(format, std::forward<Args>(args)...));
  }

  bool given(const std::string& key) const { return !place_of_(key).empty(); }

  void check_required() const {
    std::string missing;
    for (const ConfigKey& key : config_keys()) {
      if (!key.required || given(key.name)) continue;
      missing += fmt::format("{}{} ({})", missing.empty() ? "" : ", ", key.name, key.description);
    }
    check_usage(missing.empty(), "{}: missing {}; these keys have no default", name_, missing);
  }

  // A key that the chosen attention does not use would be ignored silently.
  void check_scopes() const {
    const AttentionType type = config_.model.attention.type;
    for (const ConfigKey& key : config_keys()) {
      if (in_scope(key.scope, type) || !given(key.name)) continue;
      const char* users = key.scope == Scope::mha ? "mha" : key.scope == Scope::latent ? "mla and egmla" : "egmla";
      rule(false, {key.name.c_str()},
           "{} has no meaning under model.attention.type {}, it belongs to {}; remove it, or set it to null", key.name,
           attention_type_name(type), users);
    }
  }

  void check_shape() const {
    const ModelConfig& model = config_.model;
    const int64_t length = config_.data.sequence_length;
    rule(length <= model.max_position_embeddings, {"data.sequence_length", "model.max_position_embeddings"},
         "data.sequence_length {} exceeds model.max_position_embeddings {}; raise the one or lower the other", length,
         model.max_position_embeddings);
    rule(model.vocab_size > 0 || !config_.data.tokenizer.empty(), {"model.vocab_size"},
         "model.vocab_size is not given and there is no data.tokenizer to take it from; give one of them");
  }

  void check_mha() const {
    const ModelConfig& model = config_.model;
    const int64_t heads = model.num_attention_heads, kv_heads = model.key_value_heads();
    rule(model.attention.head_dim > 0 || model.hidden_size % heads == 0,
         {"model.num_attention_heads", "model.hidden_size"},
         "model.hidden_size {} is not a multiple of model.num_attention_heads {}; change one, or give "
         "model.attention.head_dim",
         model.hidden_size, heads);
    rule(heads % kv_heads == 0, {"model.attention.num_key_value_heads", "model.num_attention_heads"},
         "model.num_attention_heads {} is not a multiple of model.attention.num_key_value_heads {}", heads, kv_heads);
    rule(model.mha_head_dim() % 2 == 0, {"model.attention.head_dim", "model.num_attention_heads", "model.hidden_size"},
         "the head width {} is odd; rotary positions need an even one; change model.attention.head_dim or "
         "model.num_attention_heads",
         model.mha_head_dim());
  }

  void check_latent() const {
    const int64_t width = config_.model.attention.qk_rope_head_dim;
    rule(width % 2 == 0, {"model.attention.qk_rope_head_dim"},
         "model.attention.qk_rope_head_dim {} is odd; rotary positions need an even width", width);
  }

  // A gated latent is one vector before it becomes keys and values.
  void check_gate() const {
    const GateConfig& gate = config_.model.attention.gate;
    if (gate.position != GatePosition::latent) return;
    rule(gate.targets == GateTargets::kv, {"model.attention.gate.targets", "model.attention.gate.position"},
         "model.attention.gate.targets k or v has no meaning with position latent: the latent feeds keys and values "
         "alike; use targets kv, or position after_up");
    rule(gate.norm == GateNormType::joint || gate.norm == GateNormType::none,
         {"model.attention.gate.norm", "model.attention.gate.position"},
         "model.attention.gate.norm separate or per_head has no meaning with position latent: the latent has neither "
         "keys and values nor heads; use norm joint or none, or position after_up");
  }

  void check_run() const {
    const RunConfig& run = config_.run;
    rule(run.name.find('/') == std::string::npos, {"run.name"},
         "run.name '{}' contains a slash; use run.dir for a path", run.name);
    const bool fp8 = run.precision == Precision::fp8;
    rule(run.device != DeviceChoice::cpu || !(fp8 || run.precision == Precision::bf16), {"run.precision", "run.device"},
         "run.precision {} needs a GPU; with run.device cpu use fp32 or auto", fp8 ? "fp8" : "bf16");
    rule(
        !fp8 || config_.data.sequence_length % 16 == 0, {"run.precision", "data.sequence_length"},
        "run.precision fp8 needs sequences of a multiple of 16 tokens, found data.sequence_length {}; the nearest that "
        "fits: {}",
        config_.data.sequence_length, (config_.data.sequence_length + 15) / 16 * 16);
    rule(run.device != DeviceChoice::cpu || run.attention_backend != AttentionBackend::cudnn,
         {"run.attention_backend", "run.device"},
         "run.attention_backend cudnn needs a GPU; with run.device cpu use native or auto");
    rule(config_.train.sample.every == 0 || !config_.data.tokenizer.empty(), {"train.sample.every"},
         "train.sample.every {} needs data.tokenizer to write text; give it, or set train.sample.every to 0",
         config_.train.sample.every);
  }

  void check_batch() const {
    const TrainConfig& train = config_.train;
    const int64_t length = config_.data.sequence_length;
    rule(train.batch_tokens % length == 0, {"train.batch_tokens", "data.sequence_length"},
         "train.batch_tokens {} is not a multiple of data.sequence_length {}; the nearest that fits: {}",
         train.batch_tokens, length, std::max(length, train.batch_tokens / length * length));
    const int64_t sequences = train.batch_tokens / length;
    rule(train.micro_batch_size == 0 || sequences % train.micro_batch_size == 0,
         {"train.micro_batch_size", "train.batch_tokens"},
         "train.batch_tokens {} holds {} sequences of {} tokens, not a multiple of train.micro_batch_size {}; change "
         "one of them, or leave train.micro_batch_size out",
         train.batch_tokens, sequences, length, train.micro_batch_size);
  }

  // A resolved configuration holds both lengths, and they agree.
  void check_length() const {
    const TrainConfig& train = config_.train;
    const bool steps = train.max_steps >= 0, tokens = train.max_tokens >= 0;
    rule(steps || tokens, {}, "missing train.max_steps or train.max_tokens: the length of the run; give one of them");
    rule(!steps || !tokens || steps_for_tokens(train) == train.max_steps, {"train.max_steps", "train.max_tokens"},
         "train.max_steps {} and train.max_tokens {} are both given and differ ({} tokens are {} steps); give one of "
         "them",
         train.max_steps, train.max_tokens, train.max_tokens, steps_for_tokens(train));
  }

  void check_schedule() const {
    const ScheduleConfig& schedule = config_.train.schedule;
    const bool falls_from_start = schedule.type == ScheduleType::cosine || schedule.type == ScheduleType::linear;
    rule(!falls_from_start || schedule.decay_steps == 0 || schedule.decay_steps > schedule.warmup_steps,
         {"train.schedule.decay_steps", "train.schedule.warmup_steps"},
         "train.schedule.decay_steps {} lies within train.schedule.warmup_steps {}; it counts from step 0 and must be "
         "larger",
         schedule.decay_steps, schedule.warmup_steps);
  }

  const Config& config_;
  const std::string& name_;
  const PlaceOf& place_of_;
};

}  // namespace

int64_t steps_for_tokens(const TrainConfig& train) {
  return train.max_tokens / train.batch_tokens + (train.max_tokens % train.batch_tokens != 0 ? 1 : 0);
}

void check_config_rules(const Config& config, const std::string& name, const PlaceOf& place_of) {
  Rules(config, name, place_of).check_all();
}

}  // namespace egmla
