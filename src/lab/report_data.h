// What a report says about runs: read from their directories, summed up, ordered by how well they did.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "train/metrics.h"

namespace egmla {

struct RunData {
  std::string name;  // unique in a report
  std::string dir;
  std::vector<MetricsRow> rows;
  std::string config_yaml;                    // empty when the directory has none
  std::map<std::string, std::string> config;  // dotted key -> value
  std::string samples;                        // the end of samples.txt
  // From stats.json, where there is one.
  std::optional<double> parameters, gate_tables, cache_elements, flops_per_token;
  std::optional<double> unigram_entropy;  // of the validation text, nats per token
  std::string hardware, commit;

  // Mean of the last fiftieth of the steps: single steps are noisy.
  std::optional<double> final_train_loss() const;
  std::optional<double> final_val_loss() const;
  std::optional<double> final_bits_per_byte() const;  // on the validation data
  // The validation loss, or the training loss of a run without validation.
  double final_loss() const;
  double median_tokens_per_s() const;
  std::optional<double> median_mfu() const;
};

// Best first. Of several paths those that hold no run, as a sweep's own files, are passed over. Raises a usage error
// when a path is missing or none holds a run.
std::vector<RunData> load_runs(const std::vector<std::string>& run_dirs);

// Configuration keys whose values differ between runs, names and directories aside.
std::vector<std::string> differing_keys(const std::vector<RunData>& runs);

// The runs' common unigram entropy; nothing when they were validated on different texts.
std::optional<double> common_unigram_entropy(const std::vector<RunData>& runs);

// Rows of a table with one column for each heading; cells that nobody knows are left out together with their column.
struct SummaryTable {
  std::vector<std::string> headings;
  std::vector<std::vector<std::string>> rows;
};
SummaryTable summary_table(const std::vector<RunData>& runs);
SummaryTable difference_table(const std::vector<RunData>& runs);
SummaryTable hardware_table(const std::vector<RunData>& runs);

// One or two sentences: the best final loss, and how far it lies below the unigram entropy.
std::string summary_sentence(const std::vector<RunData>& runs);

}  // namespace egmla
