#include "data/progress_bar.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace egmla {

ProgressBar::ProgressBar(std::string label, int64_t total)
    : label_(std::move(label)), total_(total), terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

void ProgressBar::update(int64_t done) {
  constexpr int kWidth = 30;
  const auto now = Clock::now();
  if (now - last_ < (terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10))) return;
  last_ = now;
  const double megabytes = static_cast<double>(done) / 1e6;
  const double rate = megabytes / std::chrono::duration<double>(now - start_).count();
  const double part = total_ > 0 ? std::min(1.0, static_cast<double>(done) / static_cast<double>(total_)) : 0.0;
  const std::string share = total_ > 0 ? fmt::format("{:3.0f}%  ", 100.0 * part) : "";
  const std::string text = fmt::format("{}  {}{:.1f} MB  {:.1f} MB/s", label_, share, megabytes, rate);
  if (!terminal_) {
    spdlog::info("{}", text);
    return;
  }
  const int full = static_cast<int>(part * kWidth);
  const std::string bar = total_ > 0 ? fmt::format("[{:#<{}}{:{}}]  ", "", full, "", kWidth - full) : "";
  fmt::print(stderr, "\r{}{}\033[K", bar, text);
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace egmla
