// What a report says about runs: read from their directories, summed up, ordered by how well they did.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lab/compare.h"
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
  std::vector<CountBin> benefit;  // of comparison.json, where `egmla compare` wrote one
  std::string benefit_over;       // the other side of it
  size_t setting = 0;             // its place among settings_of()'s

  // Mean of the last fiftieth of the steps: single steps are noisy.
  std::optional<double> final_train_loss() const;
  std::optional<double> final_val_loss() const;
  std::optional<double> final_bits_per_byte() const;  // on the validation data
  // The validation loss, or the training loss of a run without validation.
  double final_loss() const;
  double median_tokens_per_s() const;
  std::optional<double> median_mfu() const;
};

// Runs of one configuration, seeds aside.
struct RunSetting {
  std::string name;          // what its runs' names begin with
  std::vector<size_t> runs;  // their places, best first
  size_t seeds = 0;
  double loss = 0.0;             // mean of the final losses, one run for each seed
  std::optional<double> spread;  // their sample standard deviation; nothing for one seed
};

// Best setting first, and within a setting the best run. Of several paths those that hold no run, as a sweep's own
// files, are passed over. Raises a usage error when a path is missing or none holds a run.
std::vector<RunData> load_runs(const std::vector<std::string>& run_dirs);

// Best first: those of the runs that load_runs() gave.
std::vector<RunSetting> settings_of(const std::vector<RunData>& runs);

// Configuration keys whose values differ between runs, names and directories aside.
std::vector<std::string> differing_keys(const std::vector<RunData>& runs);

// The runs' common unigram entropy; nothing when they were validated on different texts.
std::optional<double> common_unigram_entropy(const std::vector<RunData>& runs);

// Rows of a table with one column for each heading; cells that nobody knows are left out together with their column.
struct SummaryTable {
  std::vector<std::string> headings;
  std::vector<std::vector<std::string>> rows;
};
SummaryTable settings_table(const std::vector<RunData>& runs);  // without rows unless a setting has several runs
SummaryTable summary_table(const std::vector<RunData>& runs);
SummaryTable difference_table(const std::vector<RunData>& runs);
SummaryTable hardware_table(const std::vector<RunData>& runs);

// One or two sentences: the best final loss, and how far it lies below the unigram entropy.
std::string summary_sentence(const std::vector<RunData>& runs);

}  // namespace egmla
