#include "lab/bench_attention.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace egmla {
namespace {

// The integers of "a,b,c+d,e" with the separators in between as one string.
std::vector<int64_t> integers_of(const std::string& text, std::string& separators) {
  std::vector<int64_t> values;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    int64_t value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc{} || value < 1) return {};
    values.push_back(value);
    at = next;
    if (at != end) separators += *at++;
  }
  return values;
}

}  // namespace

AttentionShape parse_attention_shape(const std::string& text) {
  std::string separators;
  const std::vector<int64_t> n = integers_of(text, separators);
  if (n.size() == 5 && separators == ",,,,") return {n[0], n[1], n[2], n[3], 0, n[4]};
  if (n.size() == 6 && separators == ",,,+,") return {n[0], n[1], n[2], n[3], n[4], n[5]};
  fail_usage(
      "bench attention: found row '{}'; expected B,H,T,QK,V with QK a width or DK+DR, as in 8,16,2048,128+64,128",
      text);
}

std::vector<std::string> default_attention_shapes() {
  return {"16,12,1024,64,64",     "16,12,1024,64+32,64", "8,16,2048,128,128",
          "8,16,2048,128+64,128", "4,16,4096,128,128",   "4,16,4096,128+64,128"};
}

std::unique_ptr<Context> bench_device() {
#ifdef EGMLA_WITH_CUDA
  check(cuda_device_count() > 0, "bench attention: no CUDA device was found; run it on a machine with an NVIDIA GPU");
  return std::make_unique<Context>(CudaDevice{0});
#else
  fail("bench attention: this build has no CUDA back end; configure with -DEGMLA_CUDA=ON where nvcc is installed");
#endif
}

std::vector<AttentionTiming> bench_attention(Context& device, const std::vector<AttentionShape>& shapes) {
  std::vector<AttentionTiming> timings;
#ifdef EGMLA_WITH_CUDA
  for (const AttentionShape& shape : shapes) {
    for (const AttentionTiming& timing : time_attention(device, shape)) timings.push_back(timing);
  }
#else
  fail("bench attention: {} rows asked of {}; this build has no CUDA back end", shapes.size(), device.name());
#endif
  return timings;
}

std::string attention_table(const std::vector<AttentionTiming>& timings) {
  std::string out = fmt::format("{:>4} {:>4} {:>6} {:>8} {:>4} {:>8} {:>10} {:>10} {:>14} {:>14}\n", "B", "H", "T",
                                "qk", "v", "by", "fwd ms", "bwd ms", "fwd TFLOP/s", "bwd TFLOP/s");
  for (const AttentionTiming& t : timings) {
    const AttentionShape& s = t.shape;
    const std::string qk = s.dr ? fmt::format("{}+{}", s.dk, s.dr) : fmt::format("{}", s.dk);
    out += fmt::format("{:>4} {:>4} {:>6} {:>8} {:>4} {:>8} {:>10.4f} {:>10.4f} {:>14.1f} {:>14.1f}\n", s.B, s.H, s.T,
                       qk, s.dv, t.backend, t.forward_ms, t.backward_ms, t.forward_tflops, t.backward_tflops);
  }
  return out;
}

std::string attention_json(const std::string& device, const std::vector<AttentionTiming>& timings) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const AttentionTiming& t : timings) {
    const AttentionShape& s = t.shape;
    rows.push_back({{"B", s.B},
                    {"H", s.H},
                    {"T", s.T},
                    {"qk", s.dk + s.dr},
                    {"rope", s.dr},
                    {"v", s.dv},
                    {"backend", t.backend},
                    {"fwd_ms", t.forward_ms},
                    {"bwd_ms", t.backward_ms},
                    {"fwd_tflops", t.forward_tflops},
                    {"bwd_tflops", t.backward_tflops}});
  }
  return nlohmann::ordered_json({{"device", device}, {"rows", rows}}).dump(2) + "\n";
}

}  // namespace egmla
