#include "train/signals.h"

#include <csignal>

namespace egmla {
namespace {

volatile std::sig_atomic_t received_signal = 0;

void on_signal(int number) {
  received_signal = number;
  std::signal(number, SIG_DFL);
}

}  // namespace

StopSignals::StopSignals() {
  received_signal = 0;
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
}

StopSignals::~StopSignals() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

int StopSignals::received() {
  return received_signal;
}

}  // namespace egmla
