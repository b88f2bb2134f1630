// The report page: curves and tables of one run or many, in one file that needs no network and no script.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace egmla {

enum class ReportFormat : uint8_t { html, markdown };

// Reads metrics.jsonl and, where present, config.yaml, samples.txt and stats.json of each run directory.
// stats.json holds what training wrote (sizes, FLOPs, hardware, commit), and may hold "val_unigram_entropy_nats", drawn
// as a reference line.
void write_report(const std::vector<std::string>& run_dirs, const std::string& out_path,
                  ReportFormat format = ReportFormat::html);

}  // namespace egmla
