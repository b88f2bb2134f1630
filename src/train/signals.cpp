#include "train/signals.h"

#include <unistd.h>

#include <csignal>
#include <ctime>

namespace egmla {
namespace {

constexpr std::time_t kPatience = 1;  // seconds

volatile std::sig_atomic_t received_signal = 0;
volatile std::time_t received_at = 0;

void on_signal(int number) {
  const std::time_t now = std::time(nullptr);
  if (received_signal && number == SIGINT && now > received_at + kPatience) ::_exit(128 + SIGINT);
  if (!received_signal) received_at = now;
  received_signal = number;
}

}  // namespace

StopSignals::StopSignals() {
  received_signal = 0;
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  std::signal(SIGUSR1, on_signal);
}

StopSignals::~StopSignals() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGUSR1, SIG_DFL);
}

int StopSignals::received() {
  return received_signal;
}

}  // namespace egmla
