// The communicator of several GPUs, carried by NCCL on a stream of its own.
#pragma once

#include <memory>

#include "dist/communicator.h"

namespace egmla {

class CudaContext;

// Joins the GPUs of all ranks; `host` carries the rendezvous and values on the host. A usage error when this build has
// no NCCL. Both arguments must outlive the result.
std::unique_ptr<Communicator> connect_nccl(CudaContext& context, Communicator& host);

}  // namespace egmla
