#include "core/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace egmla {

std::string Profile::table(int64_t steps) const {
  std::vector<std::pair<std::string, Entry>> rows(entries_.begin(), entries_.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  double total = 0;
  for (const auto& [name, entry] : rows) total += entry.seconds;
  const double count = static_cast<double>(steps);
  std::string out;
  for (const auto& [name, entry] : rows)
    out += fmt::format("{:<40} {:>10.3f} ms {:>6.0f} calls {:>6.1f}%\n", name, 1e3 * entry.seconds / count,
                       static_cast<double>(entry.calls) / count, 100 * entry.seconds / total);
  return out + fmt::format("{:<40} {:>10.3f} ms\n", "all kernels", 1e3 * total / count);
}

}  // namespace egmla
