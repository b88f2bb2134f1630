// Where the time of a decoding step goes. A kernel of a few microseconds cannot be timed on its own: each kind is
// repeated alone, in one graph, on the operands of all its calls in the order of the step, so that a layer's weights
// have left the cache by the time its turn comes again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "infer/batch_decoder.h"

namespace egmla {

// The calls of one kernel on operands of one shape.
struct DecodeKind {
  std::string kernel;
  int64_t calls = 0;    // in a step
  double us = 0;        // a call, launched behind others of its kind
  double mb = 0;        // that a call must move
  double floor_us = 0;  // of a call, from its bytes and FLOPs
};

struct DecodeProfile {
  std::vector<DecodeKind> kinds{};  // the longest first
  double step_us = 0;               // the whole step, replayed without a pause
  double kinds_us() const;          // all calls of all kinds
};

// `decoder` holds `context` tokens a sequence and stands there again afterwards; what it would say next is lost.
// gb_per_s and tflops are the floor's; tflops 0: bytes alone.
DecodeProfile profile_decoding(const Transformer& model, BatchDecoder& decoder, int64_t context, double gb_per_s,
                               double tflops);

std::string decode_profile_text(const DecodeProfile& profile);

}  // namespace egmla
