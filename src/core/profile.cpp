#include "core/profile.h"

#include <fmt/format.h>

#include <algorithm>

namespace egmla {

void Profile::add(const LaunchRecord& launch, std::function<double()> seconds) {
  Entry& entry = entries_[launch.label];
  ++entry.calls;
  entry.bytes += launch.bytes;
  if (!entry.kernel.has_value()) entry.kernel = launch.kernel;
  pending_.emplace_back(&entry, std::move(seconds));
}

void Profile::clear() {
  pending_.clear();
  entries_.clear();
}

const std::map<std::string, Profile::Entry>& Profile::entries() {
  for (const auto& [entry, seconds] : pending_) entry->seconds += seconds();
  pending_.clear();
  return entries_;
}

std::string Profile::table(int64_t steps) {
  std::vector<std::pair<std::string, const Entry*>> rows;
  double total = 0;
  for (const auto& [name, entry] : entries()) {
    rows.emplace_back(name, &entry);
    total += entry.seconds;
  }
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second->seconds > b.second->seconds; });
  const double count = static_cast<double>(steps);
  std::string out;
  for (const auto& [name, entry] : rows)
    out += fmt::format("{:<40} {:>10.3f} ms {:>6.0f} calls {:>6.1f}% {:>8.1f} GB/s\n", name,
                       1e3 * entry->seconds / count, static_cast<double>(entry->calls) / count,
                       100 * entry->seconds / total, 1e-9 * static_cast<double>(entry->bytes) / entry->seconds);
  return out + fmt::format("{:<40} {:>10.3f} ms\n", "all kernels", 1e3 * total / count);
}

}  // namespace egmla
