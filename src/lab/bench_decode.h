// Speed of decoding with random weights, beside the least time a step could take:
//   floor = (weights + cache of the whole batch + rows of folded gate tables) / bandwidth
//         + FLOPs (products, attention, what EG-MLA rebuilds of each cached token) / rate
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/config.h"
#include "lab/decode_profile.h"

namespace egmla {

struct DecodeBenchOptions {
  std::vector<int64_t> batches = {1}, contexts = {1024};
  int64_t steps = 20;
  double gb_per_s = 0;   // 0: what a copy reaches on this device
  double tflops = 700;   // of bf16 products on a GPU; the CPU's floor counts bytes alone
  bool largest = false;  // also the largest batch that fits at the longest context
  bool profile = false;  // also where a step's time goes
};

// Bytes and FLOPs that a step cannot do without.
struct DecodeFloor {
  double weights_gb = 0, cache_gb = 0, tables_gb = 0, tflop = 0;
  double weights_ms = 0, cache_ms = 0, tables_ms = 0, flops_ms = 0;
  double ms() const { return weights_ms + cache_ms + tables_ms + flops_ms; }
};

// Where the memory of a batch goes, in bytes.
struct DecodeMemory {
  int64_t free = 0;  // beside the weights
  int64_t weights = 0, tables = 0, cache_per_sequence = 0, buffers_per_sequence = 0, reserve = 0;
};

struct DecodeTiming {
  int64_t batch = 0, context = 0;
  bool folded = false;
  double ms = 0;  // median of a step, the new tokens' way to the host included
  double tokens_per_s = 0;
  DecodeFloor floor{};
  std::optional<DecodeMemory> memory{};  // of a largest batch, which these runs verify
  std::optional<DecodeProfile> profile{};
  double fraction() const { return floor.ms() / ms; }
};

struct DecodeReport {
  std::string device, dtype, name, attention;
  int64_t parameters = 0;
  int64_t cache_bytes_per_token = 0, statistics_bytes_per_token = 0;
  double gb_per_s = 0, tflops = 0;  // that floors are computed with
  std::vector<DecodeTiming> timings{};
};

// Opens no data. Positions are raised to what the contexts need.
DecodeReport bench_decode(Config config, const DecodeBenchOptions& options);

std::string decode_report_text(const DecodeReport& report);
std::string decode_report_json(const DecodeReport& report);

}  // namespace egmla
