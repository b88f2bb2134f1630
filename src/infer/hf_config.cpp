#include "infer/hf_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "core/check.h"
#include "io/config_keys.h"

namespace egmla {
namespace {

using Json = nlohmann::json;
using Ordered = nlohmann::ordered_json;

constexpr int64_t kLargestSize = int64_t{1} << 24;  // of any extent: the product of two stays exact
constexpr const char* kModelPrefix = "model.";
constexpr const char* kAttentionPrefix = "model.attention.";
constexpr const char* kGatePrefix = "model.attention.gate.";

template <class T>
Ordered value_or_null(const std::optional<T>& value) {
  return value ? Ordered(*value) : Ordered();
}

const char* model_type(HfArchitecture architecture) {
  switch (architecture) {
    case HfArchitecture::llama:
      return "llama";
    case HfArchitecture::deepseek_v3:
      return "deepseek_v3";
    default:
      return "egmla";
  }
}

// The keys that Llama and DeepSeek-V3 share.
Ordered shared_keys(const ModelConfig& m) {
  return {{"hidden_size", m.hidden_size},
          {"intermediate_size", m.intermediate_size},
          {"num_hidden_layers", m.num_hidden_layers},
          {"num_attention_heads", m.num_attention_heads},
          {"vocab_size", m.vocab_size},
          {"max_position_embeddings", m.max_position_embeddings},
          {"hidden_act", "silu"},
          {"rms_norm_eps", m.norm_eps},
          {"rope_theta", m.rope_theta},
          {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", m.rope_theta}}},
          {"tie_word_embeddings", m.tie_word_embeddings},
          {"initializer_range", m.initializer_range},
          {"attention_bias", false},
          {"attention_dropout", 0.0}};
}

Ordered llama_keys(const ModelConfig& m) {
  Ordered out = shared_keys(m);
  out.update({{"num_key_value_heads", m.key_value_heads()}, {"head_dim", m.mha_head_dim()}, {"mlp_bias", false}});
  return out;
}

Ordered deepseek_keys(const ModelConfig& m) {
  Ordered out = shared_keys(m);
  out.update({{"num_key_value_heads", m.num_attention_heads},
              {"q_lora_rank", value_or_null(m.attention.q_lora_rank)},
              {"kv_lora_rank", m.attention.kv_lora_rank},
              {"qk_nope_head_dim", m.attention.qk_nope_head_dim},
              {"qk_rope_head_dim", m.attention.qk_rope_head_dim},
              {"v_head_dim", m.attention.v_head_dim},
              {"rope_interleave", m.interleaved_rope()},
              {"first_k_dense_replace", m.num_hidden_layers},
              {"num_mtp_layers", 0}});
  return out;
}

// Where a key of our configuration stands in our own config.json: gate.* in an object, attention.type as
// attention_type, the others under their last name.
Json::json_pointer own_place(const std::string& key) {
  if (key.starts_with(kGatePrefix)) return Json::json_pointer("/gate/" + key.substr(std::string(kGatePrefix).size()));
  if (key == std::string(kAttentionPrefix) + "type") return Json::json_pointer("/attention_type");
  return Json::json_pointer("/" + key.substr(key.rfind('.') + 1));
}

// Every key of `model:` that the attention uses, from the configuration's own table.
Ordered own_keys(const ModelConfig& model) {
  Config config;
  config.model = model;
  config.model.rope_interleave = model.interleaved_rope();
  config.model.attention.num_key_value_heads = model.key_value_heads();
  config.model.attention.head_dim = model.mha_head_dim();
  Ordered out;
  for (const ConfigKey& key : config_keys()) {
    if (!key.name.starts_with(kModelPrefix) || !in_scope(key.scope, model.attention.type)) continue;
    const std::string text = key.write(config);  // a YAML scalar; numbers, booleans and null are JSON too
    out[Ordered::json_pointer(own_place(key.name).to_string())] =
        Ordered::accept(text) ? Ordered::parse(text) : Ordered(text);
  }
  return out;
}

// A config.json being read: typed access with messages.
class HfConfig {
 public:
  HfConfig(const std::string& text, std::string name) : name_(std::move(name)) {
    json_ = Json::parse(text, nullptr, false);
    check_usage(json_.is_object(), "{}: is no JSON object; expected a Hugging Face config.json", name_);
  }

  const Json& json() const { return json_; }
  const std::string& name() const { return name_; }

  // Absent and null are the same, as in transformers, except where said.
  bool given(const std::string& key) const { return json_.contains(key) && !json_[key].is_null(); }

  template <class T>
  T get(const std::string& key, T fallback) const {
    return given(key) ? typed<T>(json_[key], key) : fallback;
  }

  int64_t size(const std::string& key, int64_t fallback) const {
    const int64_t value = get<int64_t>(key, fallback);
    check_usage(value > 0 && value <= kLargestSize, "{}: {} is {}; expected 1 to {}", name_, key, value, kLargestSize);
    return value;
  }

  // The key must be absent, null or this value.
  void expect(const std::string& key, const Json& value) const {
    if (!given(key) || json_[key] == value) return;
    fail_usage("{}: {} is {}; egmla computes only {} here", name_, key, json_[key].dump().substr(0, 80), value.dump());
  }

  template <class T>
  T typed(const Json& value, const std::string& key) const {
    const bool ok = std::is_same_v<T, bool>      ? value.is_boolean()
                    : std::is_same_v<T, int64_t> ? value.is_number_integer()
                    : std::is_same_v<T, double>  ? value.is_number()
                                                 : value.is_string();
    check_usage(ok, "{}: {} is {}, of the wrong type", name_, key, value.dump().substr(0, 80));
    return value.get<T>();
  }

 private:
  Json json_;
  std::string name_;
};

// rope_parameters (transformers 5), rope_scaling with rope_theta (before), or neither.
double rope_theta_of(const HfConfig& config) {
  const double fallback = config.get<double>("rope_theta", 10000.0);
  const std::string place = config.given("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.given(place)) return fallback;
  const Json& rope = config.json()[place];
  check_usage(rope.is_object(), "{}: {} is no object", config.name(), place);
  const Json type = rope.contains("rope_type") ? rope["rope_type"] : rope.value("type", Json("default"));
  check_usage(type == "default", "{}: {} asks for rope_type {}; egmla computes default", config.name(), place,
              type.dump());
  const Json part = rope.value("partial_rotary_factor", Json(1.0));
  check_usage(part == 1.0, "{}: partial_rotary_factor is {}; egmla rotates whole heads", config.name(), part.dump());
  return rope.contains("rope_theta") ? config.typed<double>(rope["rope_theta"], place + ".rope_theta") : fallback;
}

// Fallbacks are those of transformers' own classes.
ModelConfig read_shared(const HfConfig& config) {
  for (const char* const key : {"attention_bias", "mlp_bias"}) config.expect(key, false);
  config.expect("hidden_act", "silu");
  config.expect("partial_rotary_factor", 1.0);
  ModelConfig m;
  m.hidden_size = config.size("hidden_size", 0);
  m.intermediate_size = config.size("intermediate_size", 0);
  m.num_hidden_layers = config.size("num_hidden_layers", 0);
  m.num_attention_heads = config.size("num_attention_heads", 0);
  m.vocab_size = config.size("vocab_size", 0);
  m.norm_eps = config.get<double>("rms_norm_eps", 1e-6);
  m.rope_theta = rope_theta_of(config);
  m.tie_word_embeddings = config.get<bool>("tie_word_embeddings", false);
  m.initializer_range = config.get<double>("initializer_range", 0.02);
  return m;
}

ModelConfig read_llama(const HfConfig& config) {
  ModelConfig m = read_shared(config);
  m.max_position_embeddings = config.size("max_position_embeddings", 2048);
  m.rope_interleave = false;
  m.attention.type = AttentionType::mha;
  m.attention.num_key_value_heads = config.size("num_key_value_heads", m.num_attention_heads);
  m.attention.head_dim = config.size("head_dim", std::max<int64_t>(1, m.hidden_size / m.num_attention_heads));
  return m;
}

ModelConfig read_deepseek(const HfConfig& config) {
  ModelConfig m = read_shared(config);
  const int64_t dense = config.get<int64_t>("first_k_dense_replace", 3);
  check_usage(dense >= m.num_hidden_layers,
              "{}: first_k_dense_replace {} of {} layers: the others are mixtures of experts; egmla reads dense models",
              config.name(), dense, m.num_hidden_layers);
  m.max_position_embeddings = config.size("max_position_embeddings", 4096);
  m.rope_interleave = config.get<bool>("rope_interleave", true);
  AttentionConfig& a = m.attention;
  a.type = AttentionType::mla;
  const bool without = config.json().contains("q_lora_rank") && config.json()["q_lora_rank"].is_null();
  if (!without) a.q_lora_rank = config.size("q_lora_rank", 1536);
  a.kv_lora_rank = config.size("kv_lora_rank", 512);
  a.qk_nope_head_dim = config.size("qk_nope_head_dim", 128);
  a.qk_rope_head_dim = config.size("qk_rope_head_dim", 64);
  a.v_head_dim = config.size("v_head_dim", 128);
  return m;
}

ModelConfig read_own(const HfConfig& hf) {
  Config config;
  const auto read = [&](const ConfigKey& key) {
    const Json::json_pointer place = own_place(key.name);
    if (!hf.json().contains(place) || hf.json()[place].is_null()) return;
    const Json& value = hf.json()[place];
    const std::string text = value.dump();
    check_usage(!value.is_number_integer() || value.get<int64_t>() <= kLargestSize, "{}: {} is {}; expected at most {}",
                hf.name(), place.to_string(), text, kLargestSize);
    const Mismatch expected = key.read(YAML::Load(text), config);
    check_usage(!expected, "{}: {} is {}; expected {}", hf.name(), place.to_string(), text.substr(0, 80),
                expected.value_or(""));
  };
  for (const ConfigKey& key : config_keys()) {
    if (key.name.starts_with(kModelPrefix)) read(key);
  }
  for (const char* const key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                "vocab_size", "max_position_embeddings"}) {
    hf.size(key, 0);
  }
  return config.model;
}

}  // namespace

HfArchitecture hf_architecture(const ModelConfig& model) {
  if (model.norm != NormType::rmsnorm || model.ffn != FfnType::swiglu || model.gated()) return HfArchitecture::egmla;
  if (model.attention.type != AttentionType::mha) return HfArchitecture::deepseek_v3;
  // LlamaConfig refuses a width that the heads do not divide, even with head_dim.
  const bool llama = !model.interleaved_rope() && model.hidden_size % model.num_attention_heads == 0;
  return llama ? HfArchitecture::llama : HfArchitecture::egmla;
}

const char* hf_class(HfArchitecture architecture) {
  switch (architecture) {
    case HfArchitecture::llama:
      return "LlamaForCausalLM";
    case HfArchitecture::deepseek_v3:
      return "DeepseekV3ForCausalLM";
    default:
      return "EgmlaForCausalLM";
  }
}

std::string hf_config_json(const ModelConfig& model, DType dtype, std::optional<int32_t> end_of_text) {
  const HfArchitecture architecture = hf_architecture(model);
  Ordered out = {{"architectures", {hf_class(architecture)}}, {"model_type", model_type(architecture)}};
  if (architecture == HfArchitecture::egmla) {
    out["auto_map"] = {{"AutoConfig", "modeling_egmla.EgmlaConfig"},
                       {"AutoModelForCausalLM", "modeling_egmla.EgmlaForCausalLM"}};
  }
  switch (architecture) {
    case HfArchitecture::llama:
      out.update(llama_keys(model));
      break;
    case HfArchitecture::deepseek_v3:
      out.update(deepseek_keys(model));
      break;
    case HfArchitecture::egmla:
      out.update(own_keys(model));
      break;
  }
  // Absent, the classes would put in ids of other vocabularies.
  out["bos_token_id"] = out["eos_token_id"] = value_or_null(end_of_text);
  out["pad_token_id"] = nullptr;
  out["use_cache"] = true;
  out["dtype"] = dtype == DType::bf16 ? "bfloat16" : "float32";
  return out.dump(2) + "\n";
}

ModelConfig model_of_hf_config(const std::string& json, const std::string& name) {
  const HfConfig config(json, name);
  check_usage(!config.given("quantization_config"), "{}: the weights are quantized; egmla reads F32, F16 and BF16",
              name);
  const auto type = config.get<std::string>("model_type", "");
  if (type == "llama") return read_llama(config);
  if (type == "deepseek_v3") return read_deepseek(config);
  if (type == "egmla") return read_own(config);
  fail_usage("{}: model_type is '{}'; egmla imports llama, deepseek_v3 (dense) and egmla", name, type);
}

}  // namespace egmla
