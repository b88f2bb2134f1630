// The whole configuration: YAML file, dotted overrides, defaults, and where each value came from.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/data_config.h"
#include "nn/gate_folding.h"
#include "nn/model_config.h"
#include "nn/recompute.h"
#include "optim/optim_config.h"

namespace egmla {

enum class DeviceChoice : uint8_t { automatic, cpu, cuda };
enum class Precision : uint8_t { automatic, fp32, bf16, fp8 };
enum class AttentionBackend : uint8_t { automatic, native, cudnn };

struct RunConfig {
  std::string name;
  std::string dir;  // default runs/NAME
  int64_t seed = 1337;
  DeviceChoice device = DeviceChoice::automatic;
  Precision precision = Precision::automatic;
  AttentionBackend attention_backend = AttentionBackend::automatic;
  GateFolding fold_gate = GateFolding::automatic;
  std::string init_from;        // checkpoint or Hugging Face directory; empty: random weights
  double peak_tflops = 0;       // dense bf16 TFLOP/s that MFU counts against; 0: of the known card
  double memory_limit_gib = 0;  // most that tensors may take of the device's memory; 0: all
};

struct CheckpointConfig {
  int64_t every = 1000;    // steps; 0: only at the end
  int64_t keep_last = 3;   // newest files kept
  int64_t keep_every = 0;  // files whose step is a multiple are kept for good; 0: none
};

struct EvalConfig {
  int64_t every = 250;  // steps; 0: never
  int64_t batches = 0;  // micro-batches of validation data; 0: all
};

struct SampleConfig {
  int64_t every = 0;  // steps; 0: never
  std::string prompt;
};

struct LogConfig {
  int64_t every = 10;  // console steps
};

struct SpikeConfig {
  double z = 0;          // standard deviations; 0: off
  int64_t window = 100;  // steps
  int64_t max_rollbacks = 3;
};

struct TrainConfig {
  int64_t max_steps = -1;        // -1: not given; load_config computes it from max_tokens
  int64_t max_tokens = -1;       // -1: not given
  int64_t stop_at_step = 0;      // ends a launch early; 0: off
  int64_t batch_tokens = 0;      // tokens of a global step
  int64_t micro_batch_size = 0;  // sequences of a forward pass; 0: chosen to divide the batch
  double grad_clip = 1.0;        // 0: off
  bool skip_nonfinite = false;
  SpikeConfig spike;
  Recompute recompute = Recompute::none;
  bool profile = false;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  CheckpointConfig checkpoint;
  EvalConfig eval;
  SampleConfig sample;
  LogConfig log;
};

struct DeadlineConfig {
  double start = 600, step = 600, checkpoint = 1800;  // seconds
};

struct ParallelConfig {
  int64_t zero_stage = 0;
  int64_t bucket_mb = 25;
  int64_t check_every = 0;
  DeadlineConfig deadlines;
};

struct Config {
  RunConfig run;
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  ParallelConfig parallel;
  // Dotted key -> "default", "FILE:LINE" or "command line".
  std::map<std::string, std::string> origin;
};

// Reads FILE and applies overrides ("train.max_steps=100", values are YAML), then fills derived defaults (run.dir,
// train.max_steps from max_tokens, micro_batch_size, ...) and checks every key and every rule between keys.
// Raises a usage error that names file:line or the override, what was found, what was expected, and the nearest key.
Config load_config(const std::string& file, const std::vector<std::string>& overrides);

// The same from text already in memory (a checkpoint's configuration); `name` stands in messages.
Config parse_config(const std::string& yaml, const std::string& name, const std::vector<std::string>& overrides);

// The micro-batch of a process that has `sequences` of a step: their largest divisor that holds at most 8192 tokens.
// load_config takes it over the whole batch; where origin says "default", a process may take it over its own share.
int64_t automatic_micro_batch(int64_t sequences, int64_t sequence_length);

// Every key with its value as YAML that load_config reads back to an equal Config; with_origin adds "# origin"
// comments.
std::string resolved_yaml(const Config& config, bool with_origin);

// Keys whose values differ, as "key: a -> b", leaving out those in `ignored` (a key or a section prefix such as
// "train.log").
std::vector<std::string> config_differences(const Config& a, const Config& b, const std::vector<std::string>& ignored);

// The keys and sections that may change between launches of one run directory; `ignored` for config_differences.
const std::vector<std::string>& resumable_keys();

// docs/configuration.md, generated from the key table.
std::string configuration_reference();

}  // namespace egmla
