#include "train/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace egmla {

std::string format_count(double value) {
  if (!std::isfinite(value)) return "-";
  constexpr std::array<const char*, 5> kUnits = {"", "k", "M", "B", "T"};
  size_t unit = 0;
  // 999.5 would print as 1000, so it already takes the next unit.
  for (; std::abs(value) >= 999.5 && unit + 1 < kUnits.size(); ++unit) value /= 1000.0;
  if (unit == 0) return fmt::format("{:.0f}", value);
  const double size = std::abs(value);
  return fmt::format("{:.{}f}{}", value, size < 9.995 ? 2 : size < 99.95 ? 1 : 0, kUnits[unit]);
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds)) return "-";
  const auto s = static_cast<int64_t>(std::llround(std::clamp(seconds, 0.0, 1e15)));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02d}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02d}m", s / 3600, s % 3600 / 60);
  return fmt::format("{}d{:02d}h", s / 86400, s % 86400 / 3600);
}

std::string progress_line(const Progress& p) {
  const std::string total = std::to_string(p.total);
  const double done = p.total > 0 ? 100.0 * static_cast<double>(p.step) / static_cast<double>(p.total) : 100.0;
  std::string line = fmt::format("step {:>{}}/{}  {:5.1f}%  loss {:.4f}  lr {:.2e}  norm {:.2f}  {} tok/s", p.step,
                                 total.size(), total, done, p.loss, p.lr, p.grad_norm, format_count(p.tokens_per_s));
  if (p.mfu) line += fmt::format("  mfu {:.1f}%", 100.0 * *p.mfu);
  if (p.seconds_left) line += fmt::format("  {} left", format_duration(*p.seconds_left));
  return line;
}

}  // namespace egmla
