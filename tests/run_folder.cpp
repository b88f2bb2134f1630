#include "run_folder.h"

#include <unistd.h>

#include <filesystem>

#include "core/files.h"
#include "data/shards.h"
#include "io/checkpoint.h"
#include "op_case.h"

namespace egmla::test {

namespace fs = std::filesystem;

void RunFolder::SetUp() {
  const auto* info = testing::UnitTest::GetInstance()->current_test_info();
  folder_ = (fs::temp_directory_path() / fmt::format("egmla_{}_{}", info->name(), ::getpid())).string();
  fs::create_directories(folder_);
}

void RunFolder::TearDown() {
  fs::remove_all(folder_);
}

std::string RunFolder::checkpoint(const std::string& run, int64_t step) const {
  return checkpoint_path(file(run) + "/checkpoints", step);
}

void RunFolder::write_shard(const std::string& name, int64_t tokens, uint64_t seed) const {
  ShardWriter writer(folder_, name, kVocabulary);
  writer.append(random_ids(tokens, kVocabulary, seed));
  writer.finish();
}

void RunFolder::write_config(const std::string& name, const std::string& train) const {
  write_file(file(name), fmt::format(R"(
run: {{device: cpu}}
model:
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 2
  num_attention_heads: 4
  vocab_size: {}
  max_position_embeddings: 16
  attention: {{type: egmla, kv_lora_rank: 16, qk_nope_head_dim: 8, qk_rope_head_dim: 4, v_head_dim: 8, gate: {{embed_dim: 8}}}}
data: {{train: {}/train_*.bin, val: {}/val_*.bin, sequence_length: 16}}
train:
{})",
                                     kVocabulary, folder_, folder_, train));
}

}  // namespace egmla::test
