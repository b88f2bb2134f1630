// SIGINT, SIGTERM and SIGUSR1 (which mpirun forwards) ask a training run to save and leave. Launchers send them twice
// (to the process and to its group), so only a second Ctrl-C at least a second later ends the process at once.
#pragma once

namespace egmla {

// Installs the handlers for its lifetime.
class StopSignals {
 public:
  StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  ~StopSignals();

  // The signal received, or 0.
  static int received();
};

}  // namespace egmla
