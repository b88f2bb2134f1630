// Configuration: every kind of wrong input with its place and remedy, derived defaults, round trip, shipped files.
#include <gtest/gtest.h>

#include <filesystem>

#include "core/check.h"
#include "core/files.h"
#include "io/config.h"
#include "lab/inspect.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

// Line numbers count in the messages below: model starts at line 1, data at 6, train at 9.
const std::string kSmall =
    "model:\n"
    "  hidden_size: 64\n"
    "  intermediate_size: 128\n"
    "  num_hidden_layers: 2\n"
    "  num_attention_heads: 4\n"
    "data:\n"
    "  train: a.bin\n"
    "  sequence_length: 16\n"
    "train:\n"
    "  batch_tokens: 64\n"
    "  max_steps: 10\n";
const std::string kVocabulary = "model.vocab_size=97";

Config small(std::vector<std::string> overrides = {}) {
  overrides.insert(overrides.begin(), kVocabulary);
  return parse_config(kSmall, "small.yaml", overrides);
}

// The message of the usage error that this input raises.
std::string refusal(const std::string& yaml, const std::vector<std::string>& overrides) {
  try {
    parse_config(yaml, "small.yaml", overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "accepted";
}

std::string refused_line(const std::string& line) {
  return refusal(kSmall + line + "\n", {kVocabulary});
}

std::string refused_override(std::vector<std::string> overrides) {
  overrides.insert(overrides.begin(), kVocabulary);
  return refusal(kSmall, overrides);
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "missing '" << part << "' in: " << message;
  }
}

TEST(Config, UnknownKeyNamesPlaceAndNearest) {
  EXPECT_EQ(refused_line("  batch_tokenz: 5"),
            "small.yaml:12: unknown key 'train.batch_tokenz'; the nearest valid key is 'train.batch_tokens'");
  expect_parts(refused_line("modle: {hidden_size: 3}"), {"small.yaml:12: unknown key 'modle'", "'model'"});
  expect_parts(refused_override({"train.lr=1"}),
               {"override 'train.lr=1': unknown key 'train.lr'", "'train.optimizer.lr'"});
  expect_parts(refused_override({"model.attention.gate.embeddim=8"}), {"'model.attention.gate.embed_dim'"});
  expect_parts(refused_line("<<: {a: 1}"), {"small.yaml:12: unknown key '<<'"});
}

TEST(Config, DuplicateKeyIsRefused) {
  EXPECT_EQ(refused_line("  max_steps: 11"),
            "small.yaml:12: duplicate key 'train.max_steps', first given in line 11; keep one");
  expect_parts(refused_line("model: {hidden_size: 3}"), {"small.yaml:12: duplicate key 'model.hidden_size'", "line 2"});
}

TEST(Config, WrongTypesNameFoundAndExpected) {
  EXPECT_EQ(refused_override({"train.max_steps=abc"}),
            "override 'train.max_steps=abc': train.max_steps: found 'abc'; expected an integer >= 0");
  EXPECT_EQ(refused_line("  grad_clip: [1]"), "small.yaml:12: train.grad_clip: found a list; expected a number >= 0");
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"train.max_steps=2.5", "found '2.5'; expected an integer >= 0"},
      {"train.max_steps=-1", "found '-1'"},
      {"train.max_steps='5'", "found '\"5\"'; expected an integer"},
      {"train.max_steps=1_000", "found '1_000'"},
      {"train.max_steps=1e30", "found '1e30'"},
      {"train.max_steps=true", "found 'true'"},
      {"train.optimizer.lr=nan", "expected a number >= 0"},
      {"train.optimizer.lr=.inf", "expected a number >= 0"},
      {"train.optimizer.lr=1e-4x", "expected a number >= 0"},
      {"train.optimizer.betas=[0.9]", "expected a list of two numbers in [0, 1)"},
      {"train.optimizer.betas=[0.9, 1]", "expected a list of two numbers in [0, 1)"},
      {"train.optimizer.eps=0", "expected a number > 0"},
      {"train.optimizer.state_dtype=fp16", "found 'fp16'; expected one of fp32, bf16"},
      {"train.schedule.final_lr_fraction=1.5", "expected a number in [0, 1]"},
      {"train.skip_nonfinite=yes", "found 'yes'; expected true or false"},
      {"train.schedule.type=cosin", "found 'cosin'; expected one of cosine, linear, wsd, constant"},
      {"model.attention.type={a: 1}", "found a mapping; expected one of mha, mla, egmla"},
      {"model.attention=3", "found '3'; expected a section of keys"},
      {"model.attention.q_lora_rank=0", "expected an integer >= 1 or null"},
      {"model.attention.gate.share_layers=0", "expected an integer >= 1"},
      {"parallel.zero_stage=2", "expected an integer in [0, 1]"},
      {"data.train=[{path: a.bin, weight: 0}]", "expected weight to be a number > 0"},
      {"data.train=[{path: a.bin, wight: 1}]", "expected only the keys path and weight"},
      {"data.train=[{weight: 1}]", "expected each element to have a path"},
      {"data.train={path: a.bin}", "found a mapping; expected a path, or a list"},
  };
  for (const auto& [text, part] : wrong) expect_parts(refused_override({text}), {"override '" + text + "': ", part});
}

TEST(Config, MalformedInputNamesItsLine) {
  expect_parts(refused_line("  grad_clip: }"), {"small.yaml:12: not valid YAML: "});
  expect_parts(refusal("- 1\n", {}), {"small.yaml: found a list; expected sections"});
  expect_parts(refusal("a: 1\n---\nb: 2\n", {}), {"small.yaml:2: a second YAML document begins here"});
  expect_parts(refusal(", a: 1\n", {}), {"small.yaml:1: "});  // once an endless loop
  expect_parts(refused_override({"train.max_steps"}), {"override 'train.max_steps': expected KEY=VALUE"});
  expect_parts(refused_override({"train.max_steps=["}), {"override 'train.max_steps=[': not valid YAML"});
  expect_parts(refused_override({"data.train[0]=b.bin"}), {"elements of a list cannot be overridden"});
  expect_parts(refused_override({"data.train.0.path=b.bin"}), {"unknown key 'data.train.0.path'"});
  EXPECT_THROW(load_config("/nonexistent/x.yaml", {}), Error);
}

TEST(Config, MissingKeysAreAllNamed) {
  expect_parts(refusal("", {}), {"small.yaml: missing model.hidden_size (", "model.num_attention_heads", "data.train (",
                                 "data.sequence_length", "train.batch_tokens", "no default"});
  expect_parts(refusal(kSmall, {}), {"small.yaml: model.vocab_size is not given", "data.tokenizer"});
  expect_parts(refused_override({"train.max_steps=null"}), {"missing train.max_steps or train.max_tokens"});
  EXPECT_EQ(parse_config(kSmall, "small.yaml", {"data.tokenizer=t.json"}).model.vocab_size, 0);
}

TEST(Config, RulesBetweenKeys) {
  EXPECT_EQ(refused_line("  micro_batch_size: 3"),
            "small.yaml:12: train.batch_tokens 64 holds 4 sequences of 16 tokens, not a multiple of "
            "train.micro_batch_size 3; change one of them, or leave train.micro_batch_size out");
  const std::string mha = "model.attention.type=mha", latent = "model.attention.gate.position=latent";
  const std::vector<std::pair<std::vector<std::string>, std::string>> wrong = {
      {{"train.batch_tokens=70"}, "override 'train.batch_tokens=70': train.batch_tokens 70 is not a multiple of"},
      {{"model.max_position_embeddings=8"}, "small.yaml:8: data.sequence_length 16 exceeds"},
      {{mha, "model.num_attention_heads=5"}, "model.hidden_size 64 is not a multiple of model.num_attention_heads 5"},
      {{mha, "model.attention.num_key_value_heads=3"}, "model.num_attention_heads 4 is not a multiple of"},
      {{mha, "model.attention.head_dim=9"}, "the head width 9 is odd"},
      {{mha, "model.attention.kv_lora_rank=8"}, "kv_lora_rank has no meaning under model.attention.type mha"},
      {{mha, "model.attention.gate={embed_dim: 8}"}, "embed_dim has no meaning under model.attention.type mha"},
      {{"model.attention.type=mla", "model.attention.gate.norm=joint"}, "it belongs to egmla"},
      {{"model.attention.head_dim=16"}, "it belongs to mha"},
      {{"model.attention.qk_rope_head_dim=7"}, "qk_rope_head_dim 7 is odd"},
      {{latent, "model.attention.gate.targets=k"},
       "gate.targets=k': model.attention.gate.targets k or v has no meaning"},
      {{latent, "model.attention.gate.norm=per_head"}, "use norm joint or none"},
      {{"run.device=cpu", "run.precision=bf16"}, "run.precision bf16 needs a GPU"},
      {{"run.device=cpu", "run.precision=fp8"}, "run.precision fp8 needs a GPU; with run.device cpu use fp32 or auto"},
      {{"run.precision=fp8", "data.sequence_length=8", "train.batch_tokens=64"}, "the nearest that fits: 16"},
      {{"run.device=cpu", "run.attention_backend=cudnn"}, "cudnn needs a GPU"},
      {{"run.name=a/b"}, "contains a slash"},
      {{"train.sample.every=5"}, "needs data.tokenizer"},
      {{"train.max_tokens=640", "train.max_steps=11"}, "both given and differ (640 tokens are 10 steps)"},
      {{"train.schedule={warmup_steps: 9, decay_steps: 9}"}, "decay_steps 9 lies within"},
  };
  for (const auto& [overrides, part] : wrong) expect_parts(refused_override(overrides), {part});
  EXPECT_EQ(small({latent, "model.attention.gate.norm=none"}).model.attention.gate.norm, GateNormType::none);
  EXPECT_EQ(small({mha, "model.hidden_size=65", "model.attention.head_dim=16"}).model.attention.head_dim, 16);
}

TEST(Config, ReadsEveryFormOfAValue) {
  const Config config = small({"train.max_steps=1e3", "train.optimizer.lr=6e-4", "model.rope_theta=+5E5", "run.name=7",
                               "train.optimizer={betas: [0.8, .99], eps: 1e-9}",
                               "data.val=[v.bin, {path: 'w *.bin', "
                               "weight: 0.25}]",
                               "model.attention.q_lora_rank=12", "train.sample.prompt='a: b'"});
  EXPECT_EQ(config.train.max_steps, 1000);
  EXPECT_EQ(config.train.optimizer.lr, 6e-4);
  EXPECT_EQ(config.model.rope_theta, 5e5);
  EXPECT_EQ(config.run.dir, "runs/7");
  EXPECT_EQ(config.train.optimizer.betas[1], 0.99);
  EXPECT_EQ(config.train.optimizer.eps, 1e-9);
  ASSERT_EQ(config.data.val.size(), 2U);
  EXPECT_EQ(config.data.val[1].path, "w *.bin");
  EXPECT_EQ(config.data.val[1].weight, 0.25);
  EXPECT_EQ(config.data.train[0].path, "a.bin");
  EXPECT_EQ(config.model.attention.q_lora_rank, 12);
  EXPECT_EQ(config.train.sample.prompt, "a: b");
}

TEST(Config, NullResetsAKeyOrASection) {
  const Config config = parse_config(kSmall + "  grad_clip: 3\n  optimizer: {lr: 1, eps: 2}\n", "small.yaml",
                                     {kVocabulary, "train.grad_clip=null", "train.optimizer=", "train.optimizer.lr=5"});
  EXPECT_EQ(config.train.grad_clip, 1.0);
  EXPECT_EQ(config.train.optimizer.eps, 1e-8);
  EXPECT_EQ(config.train.optimizer.lr, 5);
  EXPECT_EQ(config.origin.at("train.grad_clip"), "default");
}

TEST(Config, DerivedDefaults) {
  const Config config = small();
  EXPECT_EQ(config.run.name, "small");
  EXPECT_EQ(config.run.dir, "runs/small");
  EXPECT_EQ(config.model.max_position_embeddings, 16);
  EXPECT_EQ(config.model.rope_interleave, true);
  EXPECT_EQ(config.train.micro_batch_size, 4);
  const Config mha = small({"model.attention.type=mha"});
  EXPECT_EQ(mha.model.rope_interleave, false);
  EXPECT_EQ(mha.model.attention.num_key_value_heads, 4);
  EXPECT_EQ(mha.model.attention.head_dim, 16);
}

TEST(Config, AutomaticMicroBatchDividesTheBatch) {
  const auto size = [](int64_t length, int64_t sequences) {
    return small({fmt::format("data.sequence_length={}", length),
                  fmt::format("train.batch_tokens={}", length * sequences)})
        .train.micro_batch_size;
  };
  EXPECT_EQ(size(1024, 32), 8);
  EXPECT_EQ(size(1024, 30), 6);
  EXPECT_EQ(size(1024, 31), 1);
  EXPECT_EQ(size(16384, 4), 1);
  EXPECT_EQ(size(256, 16), 16);
}

TEST(Config, AttentionOnTheCommandLineSetsTheFilesKeysAside) {
  const std::string yaml = kSmall + "model.attention: {type: egmla, kv_lora_rank: 24, gate: {norm: separate}}\n";
  const Config mla = parse_config(yaml, "small.yaml", {kVocabulary, "model.attention.type=mla"});
  EXPECT_EQ(mla.model.attention.kv_lora_rank, 24);
  EXPECT_EQ(mla.model.attention.gate.norm, GateNormType::joint);
  EXPECT_EQ(mla.origin.at("model.attention.gate.norm"), "default");
  expect_parts(refusal(yaml, {kVocabulary, "model.attention.type=mha", "model.attention.kv_lora_rank=8"}),
               {"override 'model.attention.kv_lora_rank=8': model.attention.kv_lora_rank has no meaning"});
  expect_parts(refusal(kSmall + "model.attention: {type: mla, gate: {norm: joint}}\n", {kVocabulary}),
               {"small.yaml:12: model.attention.gate.norm has no meaning"});
}

TEST(Config, LengthOfTheRun) {
  const Config rounded = small({"train.max_steps=null", "train.max_tokens=641"});
  EXPECT_EQ(rounded.train.max_steps, 11);
  EXPECT_EQ(rounded.train.schedule.decay_steps, 0);  // follows max_steps
  // The command line's length replaces the file's, either way round.
  EXPECT_EQ(small({"train.max_tokens=128"}).train.max_steps, 2);
  const std::string by_tokens = kSmall.substr(0, kSmall.find("  max_steps")) + "  max_tokens: 128\n";
  const Config by_steps = parse_config(by_tokens, "small.yaml", {kVocabulary, "train.max_steps=0"});
  EXPECT_EQ(by_steps.train.max_steps, 0);
  EXPECT_EQ(by_steps.train.max_tokens, -1);
}

TEST(Config, OriginsAreShown) {
  const Config config = small({"train.grad_clip=2"});
  EXPECT_EQ(config.origin.at("model.hidden_size"), "small.yaml:2");
  EXPECT_EQ(config.origin.at("train.grad_clip"), "command line");
  EXPECT_EQ(config.origin.at("train.skip_nonfinite"), "default");
  const std::string text = resolved_yaml(config, true);
  expect_parts(text, {"\n  hidden_size: 64 ", "# small.yaml:2\n", "\n  grad_clip: 2 ", "# command line\n",
                      "\n    num_key_value_heads: null ", "# not used by egmla\n"});
}

TEST(Config, ResolvedYamlReadsBackToTheSame) {
  const std::vector<std::vector<std::string>> variants = {
      {},
      {"model.attention.type=mha", "model.attention.num_key_value_heads=2"},
      {"model.attention={type: mla, q_lora_rank: 7}"},
      {"model.attention.gate.embed_dim=0"},
      {"train.max_steps=null", "train.max_tokens=1000"},
      {"run.name=true", "run.dir='a # b'", "run.init_from=~",
       "train.sample.prompt=\"x\\n\\\"\\\\\\t\\x01 caf\u00e9: \""},
      {"data.train=[{path: 'c, d.bin', weight: 0.3}, e.bin]", "data.val=[null.bin, '5']"},
      {"train.optimizer={lr: 1.2345678901234567e-5, eps: 1e-300}", "model.initializer_range=123456789.125"},
      {"run.seed=9223372036854775807"},
  };
  for (const auto& overrides : variants) {
    const Config config = small(overrides);
    const std::string text = resolved_yaml(config, false);
    for (const std::string& again : {text, resolved_yaml(config, true)}) {
      const Config read = parse_config(again, "again.yaml", {});
      EXPECT_EQ(resolved_yaml(read, false), text);
      EXPECT_EQ(config_differences(config, read, {}), std::vector<std::string>{});
      EXPECT_EQ(read.train.sample.prompt, config.train.sample.prompt);
      EXPECT_EQ(read.run.dir, config.run.dir);
      EXPECT_EQ(read.train.optimizer.lr, config.train.optimizer.lr);
      EXPECT_EQ(read.run.seed, config.run.seed);
      EXPECT_EQ(read.train.max_steps, config.train.max_steps);
    }
  }
}

TEST(Config, DifferencesNameKeysAndValues) {
  const Config a = small();
  const Config b = small({"train.max_steps=20", "train.eval.every=7", "train.optimizer.lr=1e-3", "run.device=cpu",
                          "model.attention.gate.offset=1"});
  EXPECT_EQ(config_differences(a, b, resumable_keys()),
            (std::vector<std::string>{"model.attention.gate.offset: 0 -> 1", "train.optimizer.lr: 0.0006 -> 0.001"}));
  EXPECT_EQ(config_differences(a, b, {"train", "model.attention.gate"}),
            std::vector<std::string>{"run.device: auto -> cpu"});
  EXPECT_TRUE(config_differences(a, a, {}).empty());
}

TEST(Config, ResumableKeysExist) {
  const std::string reference = configuration_reference();
  for (const std::string& key : resumable_keys()) {
    EXPECT_TRUE(reference.find("| `" + key + "` |") != reference.npos ||
                reference.find("| `" + key + ".") != reference.npos)
        << key;
  }
}

TEST(Config, ShippedConfigurationsLoad) {
  int files = 0;
  for (const auto& item : fs::recursive_directory_iterator(EGMLA_SOURCE_DIR "/configs")) {
    if (item.path().extension() != ".yaml") continue;
    const bool sweep = item.path().parent_path().filename() == "sweeps";
    if (sweep && !item.path().filename().string().starts_with("base_")) continue;  // test_sweep.cpp plans these
    const Config config = load_config(item.path().string(), {});
    EXPECT_GT(config.model.vocab_size, 0) << item.path();
    EXPECT_NE(config.run.name.find(item.path().stem().string()), std::string::npos) << item.path();
    ++files;
  }
  EXPECT_GE(files, 14);
}

// Cached elements per token over all layers, as the paper's table gives them.
TEST(Config, PaperConfigurationsHaveThePapersShapes) {
  const std::vector<std::pair<std::string, int64_t>> expected = {
      {"mha", 18432}, {"mla_kv256", 3840}, {"egmla_kv256", 3840}, {"egmla_kv64", 1536}, {"egmla_kv16", 960}};
  for (const auto& [name, elements] : expected) {
    const Config config = load_config(EGMLA_SOURCE_DIR "/configs/paper/120m_" + name + ".yaml", {});
    const ModelConfig& model = config.model;
    const AttentionConfig& attention = model.attention;
    const int64_t cached = attention.type == AttentionType::mha ? 2 * model.key_value_heads() * model.mha_head_dim()
                                                                : attention.kv_lora_rank + attention.qk_rope_head_dim;
    EXPECT_EQ(cached * model.num_hidden_layers, elements) << name;
    EXPECT_EQ(config.train.max_steps, 95368) << name;
    if (model.gated()) {
      EXPECT_EQ(model.vocab_size * attention.gate.embed_dim * model.num_hidden_layers, 154389504);
    }
  }
}

// The larger pairs, of which the paper gives counts alone: 645-951M and 1.19-1.8B, without and with gate tables.
TEST(Config, PaperPairsHaveAboutThePapersCounts) {
  struct Pair {
    std::string name;
    double outside_tables, all;
  };
  for (const Pair& pair : {Pair{"645m", 645e6, 951e6}, Pair{"1200m", 1.19e9, 1.8e9}}) {
    for (const int64_t context : {2048, 4096}) {
      const std::vector<std::string> overrides = {"run.device=cpu", "train.micro_batch_size=1",
                                                  fmt::format("model.max_position_embeddings={}", context),
                                                  fmt::format("data.sequence_length={}", context)};
      const std::string path = EGMLA_SOURCE_DIR "/configs/paper/" + pair.name;
      const Inspection gated = inspect(load_config(path + "_egmla.yaml", overrides));
      const Inspection plain = inspect(load_config(path + "_mla.yaml", overrides));
      const auto all = static_cast<double>(gated.parameters), tables = static_cast<double>(gated.gate_tables);
      EXPECT_NEAR(all / pair.all, 1.0, 0.01) << pair.name;
      EXPECT_NEAR((all - tables) / pair.outside_tables, 1.0, 0.01) << pair.name;
      EXPECT_NEAR(static_cast<double>(plain.parameters) / pair.outside_tables, 1.0, 0.05) << pair.name;
      EXPECT_EQ(plain.gate_tables, 0);
      EXPECT_EQ(gated.cache_elements, plain.cache_elements);
    }
  }
}

TEST(Config, ReferenceIsUpToDate) {
  EXPECT_EQ(read_file(EGMLA_SOURCE_DIR "/docs/configuration.md"), configuration_reference())
      << "run: egmla config --reference > docs/configuration.md";
}

}  // namespace
}  // namespace egmla
