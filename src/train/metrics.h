// metrics.jsonl: one JSON object a line for every step. A resumed run first drops the rows it is about to repeat, so
// that the file always reads as one uninterrupted run.
#pragma once

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace egmla {

struct MetricsRow {
  int64_t step = 0;
  int64_t tokens = 0;  // seen so far
  double loss = 0.0;   // nats per token
  double lr = 0.0;
  double grad_norm = 0.0;  // before clipping
  double tokens_per_s = 0.0;
  std::optional<double> mfu{};  // fraction of the device's peak; unknown on a CPU
  double time = 0.0;            // seconds of training so far, all launches together
  std::optional<double> val_loss{};
  std::optional<double> val_bits_per_byte{};  // with a tokenizer; comparable between vocabularies
};

// One JSON object without line end. JSON knows no NaN: non-finite numbers become null, and null reads as NaN.
std::string metrics_json(const MetricsRow& row);

class MetricsLog {
 public:
  // Appends to `path`, after dropping rows with step > resumed_step and a torn last line.
  MetricsLog(const std::string& path, int64_t resumed_step);
  // Writes through to the system: a killed process loses nothing.
  void append(const MetricsRow& row);

 private:
  std::string path_;
  std::ofstream file_;
};

// All rows in file order. A torn last line is left out; any other bad line is a usage error naming path:line.
std::vector<MetricsRow> read_metrics(const std::string& path);

}  // namespace egmla
