// Export and import: weights come back bit for bit, and no file, however damaged, does worse than a one-line refusal.
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/bf16.h"
#include "core/files.h"
#include "core/rng.h"
#include "data/shards.h"
#include "egmla_command.h"
#include "infer/hf_export.h"
#include "infer/hf_import.h"
#include "io/safetensors.h"
#include "model_variants.h"
#include "op_case.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class Folder {
 public:
  Folder() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = fmt::format("egmla_export_{}_{}_{}", info->test_suite_name(), info->name(), ::getpid());
    std::replace(name.begin(), name.end(), '/', '_');
    path_ = (fs::temp_directory_path() / name).string();
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string operator()(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

Config config_of(const ModelConfig& model) {
  Config config;
  config.model = model;
  config.run.name = "exported";
  config.run.dir = "runs/exported";
  config.data.train = {{.path = "train_*.bin"}};
  config.data.sequence_length = 16;
  config.train.batch_tokens = 32;
  config.train.max_steps = 5;
  return parse_config(resolved_yaml(config, false), "test", {});
}

// A checkpoint of the model with random weights, norms and biases too.
void write_model(const std::string& path, const ModelConfig& model) {
  const Config config = config_of(model);
  const Transformer declared(config.model);
  CheckpointContents contents;
  contents.config_yaml = resolved_yaml(config, false);
  contents.state = {.step = 5, .tokens = 160};
  for (const NamedTensor& tensor : declared.parameters().tensors()) {
    contents.model.push_back({tensor.path, tensor.shape(), [tensor](float* target) {
                                const uint64_t stream = stream_of(tensor.path);
                                for (int64_t i = 0; i < tensor.elements(); ++i)
                                  target[i] = static_cast<float>(normal(7, static_cast<uint64_t>(i), stream));
                              }});
  }
  write_checkpoint(path, contents);
}

std::vector<float> values_of(const CheckpointReader& reader, const std::string& path) {
  std::vector<float> out(static_cast<size_t>(reader.shape(Group::model, path).elements()));
  reader.read(Group::model, path, out.data());
  return out;
}

void expect_equal_weights(const std::string& a, const std::string& b) {
  const CheckpointReader left(a), right(b);
  ASSERT_EQ(left.paths(Group::model), right.paths(Group::model));
  for (const std::string& path : left.paths(Group::model)) {
    ASSERT_EQ(left.shape(Group::model, path), right.shape(Group::model, path)) << path;
    const std::vector<float> x = values_of(left, path), y = values_of(right, path);
    EXPECT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0) << path;
  }
}

// The message of the usage error that `call` raises; empty when it raises none.
template <class Call>
std::string refusal(Call&& call) {
  try {
    call();
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage) << error.what();
    return error.what();
  }
}

void expect_refused(const std::string& message, const std::string& part) {
  EXPECT_NE(message.find(part), std::string::npos) << "missing '" << part << "' in: " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

class Export : public testing::TestWithParam<Variant> {};

TEST_P(Export, ComesBackBitForBit) {
  const Folder folder;
  write_model(folder("a.h5"), GetParam().model);
  export_hf(folder("a.h5"), {.out = folder("hf"), .dtype = DType::f32});
  const Config back = import_hf(folder("hf"), folder("b.h5"));
  expect_equal_weights(folder("a.h5"), folder("b.h5"));
  Config theirs = config_of(GetParam().model), ours = theirs;
  ours.model = back.model;
  // What transformers' own classes have no key for describes training, and stands at its default.
  EXPECT_EQ(config_differences(theirs, ours, {}), std::vector<std::string>{});
  const Config stored = parse_config(CheckpointReader(folder("b.h5")).config_yaml(), "b.h5", {});
  EXPECT_EQ(config_differences(back, stored, {}), std::vector<std::string>{});
}

TEST_P(Export, NamesTheClassThatComputesIt) {
  const std::string& name = GetParam().name;
  const char* expected = name == "mha" || name == "mha_gqa_untied" ? "LlamaForCausalLM"
                         : name == "mla" || name == "mla_q_lora"   ? "DeepseekV3ForCausalLM"
                                                                   : "EgmlaForCausalLM";
  EXPECT_STREQ(hf_class(hf_architecture(GetParam().model)), expected);
  const Folder folder;
  write_model(folder("a.h5"), GetParam().model);
  export_hf(folder("a.h5"), {.out = folder("hf")});
  const Json config = Json::parse(read_file(folder("hf/config.json")));
  EXPECT_EQ(config["architectures"], Json({expected}));
  EXPECT_EQ(config.contains("auto_map"), fs::exists(folder("hf/modeling_egmla.py")));
  EXPECT_EQ(config.contains("auto_map"), std::string(expected) == "EgmlaForCausalLM");
  const SafetensorsReader weights(folder("hf/model.safetensors"));
  EXPECT_EQ(weights.has("lm_head.weight"), !GetParam().model.tie_word_embeddings);
}

INSTANTIATE_TEST_SUITE_P(Variants, Export, testing::ValuesIn(all_variants()),
                         [](const auto& each) { return each.param.name; });

TEST(ExportFiles, RoundToBf16) {
  const Folder folder;
  write_model(folder("a.h5"), variant("egmla").model);
  export_hf(folder("a.h5"), {.out = folder("hf"), .dtype = DType::bf16});
  const CheckpointReader source(folder("a.h5"));
  const SafetensorsReader written(folder("hf/model.safetensors"));
  EXPECT_EQ(written.names(), source.paths(Group::model));
  for (const std::string& path : written.names()) {
    const std::vector<float> x = values_of(source, path);
    std::vector<float> y(x.size());
    written.read(path, y.data());
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], float_from_bf16(bf16_from_float(x[i]))) << path;
  }
}

TEST(ExportFiles, SplitIntoShards) {
  const Folder folder;
  write_model(folder("a.h5"), variant("mha_gqa_untied").model);
  const HfExportSummary done =
      export_hf(folder("a.h5"), {.out = folder("hf"), .dtype = DType::f32, .largest_shard = 16384});
  ASSERT_GE(done.weight_files.size(), 3U);
  EXPECT_FALSE(fs::exists(folder("hf/model.safetensors")));
  const Json index = Json::parse(read_file(folder("hf/model.safetensors.index.json")));
  EXPECT_EQ(index["metadata"]["total_size"], done.weight_bytes);
  for (const auto& [tensor, file] : index["weight_map"].items())
    EXPECT_TRUE(SafetensorsReader(folder("hf/") + file.get<std::string>()).has(tensor)) << tensor;
  import_hf(folder("hf"), folder("b.h5"));
  expect_equal_weights(folder("a.h5"), folder("b.h5"));
  // A tensor that the index points elsewhere for, and a path that leaves the directory.
  write_file(folder("hf/model.safetensors.index.json"), R"({"weight_map": {"x": "../hf/a.safetensors"}})");
  expect_refused(refusal([&] { import_hf(folder("hf"), folder("c.h5")); }), "expected a file name");
}

TEST(ExportFiles, ReplaceOnlyAnEarlierExport) {
  const Folder folder;
  write_model(folder("a.h5"), variant("mla").model);
  fs::create_directories(folder("mine"));
  write_file(folder("mine/thesis.tex"), "years of work");
  expect_refused(refusal([&] { export_hf(folder("a.h5"), {.out = folder("mine")}); }), "thesis.tex");
  EXPECT_EQ(read_file(folder("mine/thesis.tex")), "years of work");
  export_hf(folder("a.h5"), {.out = folder("hf")});
  write_model(folder("b.h5"), variant("egmla").model);
  export_hf(folder("b.h5"), {.out = folder("hf/")});
  EXPECT_TRUE(fs::exists(folder("hf/modeling_egmla.py")));
  export_hf(folder("a.h5"), {.out = folder("hf")});
  EXPECT_FALSE(fs::exists(folder("hf/modeling_egmla.py"))) << "left over from the export before";
  for (const char* leftover : {"hf.tmp", "hf.old", "mine.tmp"}) EXPECT_FALSE(fs::exists(folder(leftover))) << leftover;
}

std::string file_with(uint64_t length, const std::string& header, const std::string& values) {
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + values;
}
std::string file_with(const std::string& header, const std::string& values) {
  return file_with(header.size(), header, values);
}

TEST(Safetensors, RefuseWhatTheFormatForbids) {
  const Folder folder;
  const std::string eight(8, 'v'), good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"("a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "too few for a header"},
      {"1234567", "too few for a header"},
      {file_with(uint64_t{1} << 62, good, eight), "header claims"},
      {file_with(~uint64_t{0}, good, eight), "header claims"},
      {file_with(good.size() + 9, good, eight), "header claims"},
      {file_with("[1,2]", ""), "not a JSON object"},
      {file_with("{\"a\":", ""), "not JSON"},
      {file_with("", ""), "not JSON"},
      {file_with("{\"\xff\":1}", ""), "not JSON"},
      {file_with(std::string(1000, '['), ""), "nested"},
      {file_with(R"({"a":1})", ""), "expected dtype, shape and data_offsets"},
      {file_with("{" + tensor("F32", "[2]", "[0,8]") + "," + tensor("F32", "[2]", "[0,8]") + "}", eight), "twice"},
      {file_with("{" + tensor("F31", "[2]", "[0,8]") + "}", eight), "has the type"},
      {file_with("{" + tensor("F32", "[3]", "[0,8]") + "}", eight), "does not fill"},
      {file_with("{" + tensor("F32", "[-2]", "[0,8]") + "}", eight), "whole numbers"},
      {file_with("{" + tensor("F32", "[2.0]", "[0,8]") + "}", eight), "whole numbers"},
      {file_with("{" + tensor("F32", "[1,1,1,1,1,2]", "[0,8]") + "}", eight), "at most 5"},
      {file_with("{" + tensor("F32", "[4294967296,4294967296]", "[0,8]") + "}", eight), "too large"},
      {file_with("{" + tensor("F32", "[2]", "[0,-8]") + "}", eight), "expected dtype"},
      {file_with("{" + tensor("F32", "[2]", "[8,0]") + "}", eight), "lies at bytes"},
      {file_with("{" + tensor("F32", "[2]", "[4,12]") + "}", eight), "lies at bytes"},
      {file_with("{" + tensor("F32", "[4]", "[0,16]") + "}", eight), "lies at bytes"},
      {file_with("{" + tensor("F32", "[1]", "[0,4]") + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                 eight),
       "lies at bytes"},
      {file_with(good, eight + "x"), "the header describes 8"},
  };
  for (const auto& [bytes, part] : cases) {
    write_file(folder("x.safetensors"), bytes);
    expect_refused(refusal([&] { SafetensorsReader reader(folder("x.safetensors")); }), part);
  }
  write_file(folder("x.safetensors"), file_with(good, eight));
  EXPECT_EQ(SafetensorsReader(folder("x.safetensors")).shape("a"), Shape{2});
  expect_refused(refusal([&] { SafetensorsReader(folder("x.safetensors")).shape("b"); }), "holds no tensor b");
  expect_refused(refusal([&] { SafetensorsReader reader(folder("none")); }), "no such file");
}

// Any damage gives a refusal or the tensors of a whole file, never a crash or another shape than the bytes have.
TEST(Safetensors, SurviveDamage) {
  const Folder folder;
  const std::string path = folder("x.safetensors");
  write_safetensors(path,
                    {{"a", {3, 4}, [](float* target) { std::fill_n(target, 12, 1.5F); }},
                     {"b", {5}, [](float* target) { std::fill_n(target, 5, -2.0F); }}},
                    DType::bf16);
  const std::string good = read_file(path);
  const size_t header = good.size() - 34;
  int refused = 0;
  for (uint64_t trial = 0; trial < 1500; ++trial) {
    std::string bytes = good;
    for (uint64_t i = 0; i <= trial % 3; ++i) {
      const auto draw = philox(trial, i);
      bytes[draw[0] % header] = static_cast<char>(draw[1]);
    }
    if (trial % 5 == 0) bytes.resize(philox(trial, 9)[0] % good.size());
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    refused += refusal([&] {
                 const SafetensorsReader reader(path);
                 for (const std::string& name : reader.names()) {
                   std::vector<float> values(static_cast<size_t>(reader.shape(name).elements()));
                   reader.read(name, values.data());
                 }
               }) != "";
  }
  EXPECT_GT(refused, 1000);
}

TEST(Safetensors, ReadHalfPrecision) {
  const Folder folder;
  const std::vector<uint16_t> half = {0x0000, 0x8000, 0x3c00, 0xc000, 0x0001, 0x03ff, 0x0400, 0x7bff, 0x7c00, 0x3555};
  const std::vector<float> expected = {0.0F,         -0.0F,    1.0F,     -2.0F,    0x1p-24F,
                                       0x1.ff8p-15F, 0x1p-14F, 65504.0F, INFINITY, 0x1.554p-2F};
  write_file(folder("x.safetensors"),
             file_with(R"({"h":{"dtype":"F16","shape":[2,5],"data_offsets":[0,20]}})",
                       std::string(reinterpret_cast<const char*>(half.data()), half.size() * 2)));
  std::vector<float> values(half.size());
  SafetensorsReader(folder("x.safetensors")).read("h", values.data());
  EXPECT_EQ(values, expected);
  EXPECT_TRUE(std::signbit(values[1]));
}

TEST(Import, RefusesWhatItCannotCompute) {
  const Folder folder;
  write_model(folder("mha.h5"), variant("mha").model);
  write_model(folder("mla.h5"), variant("mla").model);
  write_model(folder("egmla.h5"), variant("egmla").model);
  struct Case {
    const char *model, *key;
    Json value;
    const char* part;
  };
  const std::vector<Case> cases = {
      {"mha", "model_type", "mamba", "model_type is 'mamba'"},
      {"mha", "hidden_act", "gelu", "hidden_act"},
      {"mha", "attention_bias", true, "attention_bias"},
      {"mha", "rope_parameters", {{"rope_type", "llama3"}, {"factor", 8.0}}, "rope_type \"llama3\""},
      {"mha", "hidden_size", -1, "hidden_size is -1"},
      {"mha", "hidden_size", "wide", "wrong type"},
      {"mha", "hidden_size", 64, "this model has"},
      {"mha", "num_hidden_layers", 16'000'000, "num_hidden_layers is 16000000"},
      {"mha", "num_hidden_layers", 1, "which this model has not"},
      {"mha", "num_hidden_layers", 3, "lacks model.layers.2"},
      {"mha", "num_key_value_heads", 3, "num_key_value_heads"},
      {"mha", "tie_word_embeddings", false, "lacks lm_head.weight"},
      {"mha", "quantization_config", Json::object(), "quantized"},
      {"mla", "first_k_dense_replace", 1, "mixtures of experts"},
      {"mla", "kv_lora_rank", int64_t{1} << 60, "kv_lora_rank"},
      {"egmla", "norm", "batchnorm", "/norm is \"batchnorm\""},
      {"egmla", "num_hidden_layers", int64_t{1} << 60, "expected at most"},
      {"egmla", "gate", {{"embed_dim", 32}}, "this model has"},
  };
  for (const Case& each : cases) {
    export_hf(folder(each.model) + ".h5", {.out = folder("hf"), .dtype = DType::f32});
    Json config = Json::parse(read_file(folder("hf/config.json")));
    config[each.key] = each.value;
    write_file(folder("hf/config.json"), config.dump());
    expect_refused(refusal([&] { import_hf(folder("hf"), folder("x.h5")); }), each.part);
    EXPECT_FALSE(fs::exists(folder("x.h5"))) << each.key;
  }
  write_file(folder("hf/config.json"), "{");
  expect_refused(refusal([&] { import_hf(folder("hf"), folder("x.h5")); }), "is no JSON object");
  expect_refused(refusal([&] { import_hf(folder("nowhere"), folder("x.h5")); }), "holds no config.json");
}

// The whole way round by the commands, and training on from the directory.
TEST(Import, CommandsGoRoundAndTrainOn) {
  const Folder folder;
  const ModelConfig model = variant("egmla_shared_table").model;
  write_model(folder("a.h5"), model);
  const Outcome exported =
      egmla_command(fmt::format("export '{}' --format hf --out '{}' --dtype fp32", folder("a.h5"), folder("hf")));
  EXPECT_EQ(exported.code, 0) << exported.err;
  EXPECT_NE(exported.out.find("EgmlaForCausalLM"), std::string::npos) << exported.out;
  EXPECT_NE(read_file(folder("hf/README.md")).find("EG-MLA, 4 heads"), std::string::npos);
  const Outcome imported = egmla_command(
      fmt::format("import '{}' --out '{}' --config '{}'", folder("hf"), folder("b.h5"), folder("b.yaml")));
  EXPECT_EQ(imported.code, 0) << imported.err;
  expect_equal_weights(folder("a.h5"), folder("b.h5"));
  ShardWriter writer(folder(""), "train", model.vocab_size);
  writer.append(random_ids(2000, model.vocab_size, 1));
  writer.finish();
  for (const char* source : {"hf", "b.h5"}) {
    const Outcome trained = egmla_command(
        fmt::format("train '{}' data.train='{}' run.dir='{}' run.init_from='{}' run.device=cpu train.max_steps=0",
                    folder("b.yaml"), folder("train_*.bin"), folder("run-") + source, folder(source)));
    EXPECT_EQ(trained.code, 0) << trained.err;
    expect_equal_weights(folder("a.h5"), checkpoint_path(folder("run-") + source + "/checkpoints", 0));
  }
  EXPECT_EQ(egmla_command(fmt::format("export '{}' --out '{}'", folder("none.h5"), folder("x"))).code, 2);
}

}  // namespace
}  // namespace egmla::test
