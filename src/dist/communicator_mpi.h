// The communicator of several processes on the host, carried by MPI.
#pragma once

#include <memory>

#include "dist/communicator.h"

namespace egmla {

// Initialises MPI; a usage error when this build has none, or when MPI does not find the `expected` processes.
std::unique_ptr<Communicator> connect_mpi(int expected);

}  // namespace egmla
