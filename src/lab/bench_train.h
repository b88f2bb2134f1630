// Speed of a whole training step on random tokens, in the fields that PyTorch peers print, beside its floor. Under
// mpirun all processes step together, each with a batch of its own, and what their exchange costs is told.
#pragma once

#include <optional>
#include <string>

#include "io/config.h"
#include "lab/bench_floor.h"

namespace egmla {

// Several processes.
struct ExchangeTiming {
  int64_t zero_stage = 0, buckets = 0, overlapped = 0;  // buckets that left before backward was over
  double gradient_bytes = 0, weight_bytes = 0;          // of the whole model, that a step exchanges
  double silent_ms = 0;                                 // running_ms of the same processes without any exchange
};

struct TrainTiming {
  int gpus = 1;         // processes
  bool is_root = true;  // the one that prints
  std::string device, dtype;
  int64_t parameters = 0, matmul_parameters = 0;
  int64_t batch = 0, sequence_length = 0, accumulation = 1;
  double ms = 0;                        // median of a step, of the slowest process
  double running_ms = 0;                // a step when the host does not wait for it, as in training
  double tokens_per_s = 0, tflops = 0;  // of each process
  std::optional<double> mfu;            // where the peak is known (train/card.h)
  double peak_gib = 0;
  double loss = 0;                 // after the last step, so that the work is seen to be real
  std::optional<StepFloor> floor;  // of one process alone
  std::optional<ExchangeTiming> exchange;
  std::string profile;  // time by kernel, when asked for

  double floor_ratio() const { return ms / floor->floor_ms(); }
  double exposed_ms() const { return running_ms - exchange->silent_ms; }
};

// Forward, backward, clipping and AdamW on batches of uniform random ids: `warmup` steps, then `steps` timed ones.
// train.batch_tokens and micro_batch_size are those of each process. No data is opened. The floor is measured for one
// process alone.
TrainTiming bench_train(const Config& config, int64_t warmup, int64_t steps, bool profile, bool floor = true);

std::string train_timing_text(const TrainTiming& timing);
std::string train_timing_json(const Config& config, const TrainTiming& timing);

}  // namespace egmla
