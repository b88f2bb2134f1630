// Training from a configuration: opens what it needs, resumes what is there, runs the loop.
#pragma once

#include "io/config.h"

namespace egmla {

// Trains until max_steps, stop_at_step or a signal, and saves. Raises usage errors before any work when something does
// not fit, runtime errors for non-finite losses and full disks.
void train(const Config& config);

}  // namespace egmla
