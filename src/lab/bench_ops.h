// Kernels that are bound by memory, each alone on random data: time, bytes a second, and the share of a plain copy's
// rate. Bytes are those a kernel must move: each operand once (kernels/launch.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/dtype.h"

namespace egmla {

// What a model's step asks of these kernels.
struct OpSizes {
  std::string name;
  int64_t B = 0, T = 0, D = 0, F = 0, H = 0, V = 0;
  int64_t dn = 0, dr = 0, dv = 0;  // head widths: without position, with RoPE, value
  int64_t logit_rows = 0;          // of a chunk of the loss
  int64_t parameters = 0;
};

struct OpTiming {
  std::string size, op;
  double ms = 0;
  double gb_per_s = 0;
  double of_copy = 0;  // 1: as fast as a copy
};

struct OpReport {
  std::string device, dtype;
  double copy_gb_per_s = 0;
  std::vector<OpTiming> rows;
};

// "124m" and "1b", the shapes of configs/bench, and "small" for a CPU. Raises a usage error on anything else.
OpSizes op_sizes(const std::string& name);

// Times every kernel in `compute` at each size.
OpReport bench_ops(Context& context, DType compute, const std::vector<OpSizes>& sizes);

std::string op_report_text(const OpReport& report);
std::string op_report_json(const OpReport& report);

}  // namespace egmla
