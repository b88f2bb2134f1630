#include "fuzz/readers.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "core/check.h"
#include "core/files.h"
#include "data/shards.h"
#include "data/token_loader.h"
#include "infer/choice_tasks.h"
#include "infer/hf_config.h"
#include "io/checkpoint.h"
#include "io/config.h"
#include "io/safetensors.h"
#include "text/tokenizer.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

// Ends the process at once: no reader may catch it.
void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "not held: %s\n", what);
  std::abort();
}

// A folder in memory, removed at the end of the process.
class Scratch {
 public:
  static const Scratch& get() {
    static const Scratch scratch;
    return scratch;
  }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string with(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary | std::ios::trunc) << bytes;
    return file(name);
  }

 private:
  Scratch() : path_((base() / fmt::format("egmla_fuzz_{}", ::getpid())).string()) { fs::create_directories(path_); }
  ~Scratch() { fs::remove_all(path_); }
  static fs::path base() { return fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path(); }

  std::string path_;
};

// What is accepted is written out and read back as the same.
void read_config(const std::string& bytes) {
  const Config config = parse_config(bytes, "fuzz.yaml", {});
  const std::string resolved = resolved_yaml(config, false);
  const Config again = parse_config(resolved, "resolved.yaml", {});
  require(config_differences(config, again, {}).empty(), "a resolved configuration reads as the one it came from");
}

void read_shard(const std::string& bytes) {
  constexpr int64_t kVocabulary = 50000, kLength = 7;
  const std::string path = Scratch::get().with("train_000000.bin", bytes);
  const Shard shard(path);
  std::vector<int32_t> ids(static_cast<size_t>(shard.size()));
  shard.read(0, shard.size(), ids.data());
  const TokenLoader loader({{.path = path, .weight = 1.0}}, DataOrder::shuffled, kLength, kVocabulary, 1);
  ids.resize(kLength + 1);
  for (int64_t sample = 0; sample < std::min<int64_t>(loader.samples_per_epoch(), 64); ++sample) {
    loader.read(sample, ids.data());
    for (const int32_t id : ids) require(id >= 0 && id < kVocabulary, "ids lie in the vocabulary");
  }
}

void use_tokenizer(const Tokenizer& tokenizer) {
  const std::string text = "It's  2 verses;\n\xc3\xa9\xff\xf0\x9f\x8c\x8d<|endoftext|> in the end";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  for (const int32_t id : ids) require(id >= 0 && id < tokenizer.vocab_size(), "ids lie in the vocabulary");
  const std::string decoded = tokenizer.decode(ids);
  require(decoded == text || decoded == " " + text, "decoding gives the text that was encoded");
  const std::string json = tokenizer.to_json();
  require(Tokenizer::from_json(json, "written").to_json() == json, "a tokenizer that was written reads as itself");
}

void read_tokenizer(const std::string& bytes) {
  use_tokenizer(Tokenizer::from_json(bytes, "tokenizer.json"));
}

// encoder.json, a zero byte, vocab.bpe.
void read_gpt2(const std::string& bytes) {
  const size_t border = std::min(bytes.find('\0'), bytes.size());
  const std::string merges = border < bytes.size() ? bytes.substr(border + 1) : "";
  use_tokenizer(Tokenizer::from_gpt2(bytes.substr(0, border), merges, "encoder.json"));
}

void read_safetensors(const std::string& bytes) {
  const SafetensorsReader reader(Scratch::get().with("model.safetensors", bytes));
  for (const std::string& name : reader.names()) {
    reader.checksum(name);
    std::vector<float> values(static_cast<size_t>(reader.shape(name).elements()));
    try {
      reader.read(name, values.data());
    } catch (const Error& error) {  // a type that is no weight's
      require(error.code() == ExitCode::usage, "what cannot be read is the user's input");
    }
  }
}

void read_tasks(const std::string& bytes) {
  const ChoiceTask task = read_choice_task(Scratch::get().with("task.jsonl", bytes));
  for (const Question& question : task.questions) {
    require(question.answer < question.choices.size(), "the answer is one of the choices");
    for (const Choice& choice : question.choices) require(choice.length > 0, "a choice has characters");
  }
}

void read_hf_config(const std::string& bytes) {
  const ModelConfig model = model_of_hf_config(bytes, "config.json");
  require(model.num_hidden_layers > 0 && model.hidden_size > 0, "a model has layers and a width");
}

CheckpointContents checkpoint_contents(const std::string& text, uint64_t number) {
  const auto fill = [number](float* target) { std::fill(target, target + 6, static_cast<float>(number % 97)); };
  const TensorSource tensor{"model.norm.weight", {2, 3}, fill};
  CheckpointContents contents;
  contents.model = contents.exp_avg = contents.exp_avg_sq = {tensor};
  contents.state = {.step = static_cast<int64_t>(number),
                    .tokens = static_cast<int64_t>(number >> 1),
                    .samples = -static_cast<int64_t>(number >> 3),
                    .seed = number};
  contents.config_yaml = text.substr(0, text.size() / 2);
  contents.tokenizer_json = text.substr(text.size() / 2);
  return contents;
}

// A checkpoint of the bytes (a count of changes, {place, xor} of each, a number for the state, texts). Unchanged it
// reads as it was written; changed anywhere before the seal's last word it is refused or reads as it was.
void read_checkpoint(const std::string& bytes) {
  size_t next = 0;
  const auto take = [&](auto value) {
    const size_t size = std::min(sizeof value, bytes.size() - next);
    std::memcpy(&value, bytes.data() + next, size);
    next += size;
    return value;
  };
  std::vector<std::pair<uint16_t, uint8_t>> changes(take(uint8_t{0}) % 8);
  for (auto& [place, bits] : changes) {
    place = take(uint16_t{0});
    bits = take(uint8_t{0});
  }
  const auto number = take(uint64_t{0});
  std::string text = bytes.substr(next);
  std::erase(text, '\0');  // HDF5's strings end at it
  const CheckpointContents contents = checkpoint_contents(text, number);
  const std::string path = Scratch::get().file("step-00000001.h5");
  write_checkpoint(path, contents);
  const std::string good = read_file(path);
  std::string changed = good;
  for (const auto& [place, bits] : changes) changed[place % (good.size() - 8)] ^= static_cast<char>(bits);
  Scratch::get().with("step-00000001.h5", changed);
  const CheckpointReader reader(path);
  reader.verify();
  require(reader.state() == contents.state, "the state reads as it was written");
  require(reader.config_yaml() == contents.config_yaml, "the configuration reads as it was written");
  require(reader.tokenizer_json() == contents.tokenizer_json, "the tokenizer reads as it was written");
  require(changed == good, "a change is noticed");
}

}  // namespace

const std::vector<FuzzedReader>& fuzzed_readers() {
  static const std::vector<FuzzedReader> readers = {{"config", read_config},           {"shard", read_shard},
                                                    {"tokenizer", read_tokenizer},     {"gpt2", read_gpt2},
                                                    {"safetensors", read_safetensors}, {"tasks", read_tasks},
                                                    {"hf_config", read_hf_config},     {"checkpoint", read_checkpoint}};
  return readers;
}

void read_fuzzed(const std::string& name, const std::string& bytes) {
  for (const FuzzedReader& reader : fuzzed_readers()) {
    if (name != reader.name) continue;
    try {
      reader.read(bytes);
    } catch (const Error& error) {
      require(error.code() == ExitCode::usage, error.what());
    } catch (const std::exception& error) {
      require(false, error.what());
    }
    return;
  }
  require(false, "the reader has this name");
}

}  // namespace egmla::test
