// Speed of a whole training step on random tokens, in the fields that PyTorch peers print, beside its floor.
#pragma once

#include <optional>
#include <string>

#include "io/config.h"
#include "lab/bench_floor.h"

namespace egmla {

struct TrainTiming {
  std::string device, dtype;
  int64_t parameters = 0, matmul_parameters = 0;
  int64_t batch = 0, sequence_length = 0, accumulation = 1;
  double ms = 0;  // median of a step
  double tokens_per_s = 0, tflops = 0;
  std::optional<double> mfu;  // where the peak is known (train/card.h)
  double peak_gib = 0;
  double loss = 0;  // after the last step, so that the work is seen to be real
  StepFloor floor;
  std::string profile;  // time by kernel, when asked for

  double floor_ratio() const { return ms / floor.floor_ms(); }
};

// Forward, backward, clipping and AdamW on batches of uniform random ids, as train.batch_tokens and micro_batch_size
// say: `warmup` steps, then `steps` timed ones. No data is opened.
TrainTiming bench_train(const Config& config, int64_t warmup, int64_t steps, bool profile);

std::string train_timing_text(const TrainTiming& timing);
std::string train_timing_json(const Config& config, const TrainTiming& timing);

}  // namespace egmla
