// Timing overwrites the kernel's own outputs, which a run overwrites whole in any case.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <sstream>
#include <vector>

#include "core/bf16.h"
#include "core/cuda_state.h"
#include "kernels/attention_choice.h"
#include "kernels/attention_cudnn.h"

namespace egmla {

struct AttentionChoice {
  int32_t cudnn = 0;    // 1: cuDNN's kernels
  int64_t version = 0;  // of the cuDNN that was measured
};

struct AttentionChoices {
  AttentionPolicy policy = AttentionPolicy::fastest;
  std::optional<std::shared_ptr<CudnnAttention>> cudnn;  // empty until looked for
  std::map<AttentionKey, AttentionChoice> choices;
};

namespace {

constexpr int64_t kShortest = 512;  // below so many tokens, building cuDNN's kernels costs more than they gain
constexpr int kRuns = 2;            // in one timing
constexpr int kRounds = 3;          // timings; the shortest counts
constexpr double kTolerance = 0.03;

AttentionChoices& choices_of(CudaContext& context) {
  auto& choices = context.state().attention;
  if (!choices) choices = std::make_shared<AttentionChoices>();
  return *choices;
}

CudnnAttention* cudnn_of(CudaContext& context) {
  AttentionChoices& choices = choices_of(context);
  if (!choices.cudnn) choices.cudnn = open_cudnn(context);
  return choices.cudnn->get();
}

std::vector<View> operands_of(const AttentionForward& k) {
  return {k.q, k.k, k.k_rope, k.v, k.out};
}
std::vector<View> operands_of(const AttentionBackward& k) {
  return {k.q, k.k, k.k_rope, k.v, k.out, k.out_grad, k.q_grad, k.k_grad, k.k_rope_grad, k.v_grad};
}
std::vector<View> results_of(const AttentionForward& k) {
  return {k.out};
}
std::vector<View> results_of(const AttentionBackward& k) {
  if (!k.k_rope.defined()) return {k.q_grad, k.k_grad, k.v_grad};
  return {k.q_grad, k.k_grad, k.v_grad, k.k_rope_grad};
}

// bf16 whose rows begin at multiples of 16 bytes.
bool aligned(const View& x) {
  constexpr int64_t kElements = 8;
  return !x.defined() ||
         (x.dtype == DType::bf16 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.size(3) % kElements == 0 &&
          x.stride(0) % kElements == 0 && x.stride(1) % kElements == 0 && x.stride(2) % kElements == 0);
}

template <class Kernel>
bool suits_cudnn(const Kernel& k) {
  const std::vector<View> operands = operands_of(k);
  return !k.document_start.defined() && k.q.size(1) == k.k.size(1) &&
         std::all_of(operands.begin(), operands.end(), aligned);
}

template <class Kernel>
bool accepted(CudaContext& context, const Kernel& k) {
  if (!suits_cudnn(k)) return false;
  CudnnAttention* const cudnn = cudnn_of(context);
  return cudnn && cudnn->accepts(k);
}

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "attention: cudaEventCreate"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "attention: cudaEventRecord"); }
  float milliseconds_since(const Event& begin) const {
    float time = 0;
    check_cuda(cudaEventSynchronize(event_), "attention: cudaEventSynchronize");
    check_cuda(cudaEventElapsedTime(&time, begin.event_, event_), "attention: cudaEventElapsedTime");
    return time;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Of one run, after one that does not count.
template <class F>
float milliseconds(CudaContext& context, F&& run_once) {
  const cudaStream_t stream = context.state().stream;
  Event begin, end;
  run_once();
  float best = std::numeric_limits<float>::infinity();
  for (int round = 0; round < kRounds; ++round) {
    begin.record(stream);
    for (int i = 0; i < kRuns; ++i) run_once();
    end.record(stream);
    best = std::min(best, end.milliseconds_since(begin) / kRuns);
  }
  return best;
}

// The last head of the last sequence of each result, [T, width].
template <class Kernel>
std::vector<std::vector<float>> sample(CudaContext& context, const Kernel& k) {
  std::vector<std::vector<float>> out;
  for (const View& x : results_of(k)) {
    const int64_t first = (x.size(0) - 1) * x.stride(0) + (x.size(2) - 1) * x.stride(2);
    const auto width = static_cast<size_t>(x.size(3)), rows = static_cast<size_t>(x.size(1));
    std::vector<uint16_t> values(rows * width);
    check_cuda(cudaMemcpy2DAsync(values.data(), width * 2, static_cast<const uint16_t*>(x.data) + first,
                                 static_cast<size_t>(x.stride(1)) * 2, width * 2, rows, cudaMemcpyDeviceToHost,
                                 context.state().stream),
               "attention: copy to the host");
    context.synchronize();
    auto& wide = out.emplace_back(values.size());
    std::transform(values.begin(), values.end(), wide.begin(), float_from_bf16);
  }
  if constexpr (std::is_same_v<Kernel, AttentionForward>) {
    auto& lse = out.emplace_back(static_cast<size_t>(k.lse.elements()));
    context.copy_to_host(lse.data(), k.lse.data, k.lse.bytes());
  }
  return out;
}

// Relative to the norm of each tensor; NaN agrees with nothing.
bool agree(const std::vector<std::vector<float>>& found, const std::vector<std::vector<float>>& expected) {
  for (size_t tensor = 0; tensor < expected.size(); ++tensor) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < expected[tensor].size(); ++i) {
      const double right = expected[tensor][i], difference = found[tensor][i] - right;
      error += difference * difference;
      norm += right * right;
    }
    if (!(std::sqrt(error) <= kTolerance * std::sqrt(norm))) return false;
  }
  return true;
}

template <class Kernel>
AttentionChoice measure(CudaContext& context, const Kernel& k) {
  if (!accepted(context, k)) return {};
  CudnnAttention& cudnn = *cudnn_of(context);
  const float ours = milliseconds(context, [&] { run_native(context, k); });
  const auto expected = sample(context, k);
  cudnn.run(context, k);
  const auto found = sample(context, k);
  const float theirs = milliseconds(context, [&] { cudnn.run(context, k); });
  const bool right = agree(found, expected), repeats = sample(context, k) == found;
  const bool chosen = right && repeats && theirs < ours;
  spdlog::info("{} B {}, T {}, H {}, widths {} and {}: our kernel {:.3f} ms, cuDNN's {:.3f} ms{}; {} runs",
               Kernel::kName, k.q.size(0), k.q.size(1), k.q.size(2), k.q.size(3), k.v.size(3), ours, theirs,
               !right     ? " with other results"
               : !repeats ? " with results that change"
                          : "",
               chosen ? "cuDNN's" : "ours");
  return {.cudnn = chosen, .version = cudnn.version()};
}

bool capturing(CudaContext& context) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(context.state().stream, &status), "attention: cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

template <class Kernel>
bool runs_on_cudnn(CudaContext& context, const Kernel& k) {
  AttentionChoices& all = choices_of(context);
  if (all.policy == AttentionPolicy::native || all.policy == AttentionPolicy::portable) return false;
  if (all.policy == AttentionPolicy::cudnn) return accepted(context, k);
  if (k.q.size(1) < kShortest || !suits_cudnn(k)) return false;
  const AttentionKey key = key_of(k);
  const auto known = all.choices.find(key);
  if (known != all.choices.end() && !known->second.cudnn) return false;
  const CudnnAttention* const cudnn = cudnn_of(context);
  if (!cudnn) return false;
  if (known != all.choices.end() && known->second.version == cudnn->version()) return accepted(context, k);
  if (capturing(context)) return false;
  const AttentionChoice choice = measure(context, k);
  all.choices[key] = choice;
  return choice.cudnn;
}

template <class Kernel>
void run_chosen(CudaContext& context, const Kernel& k) {
  if (runs_on_cudnn(context, k)) return cudnn_of(context)->run(context, k);
  if (choices_of(context).policy == AttentionPolicy::portable) return run_portable(context, k);
  run_native(context, k);
}

}  // namespace

void run(CudaContext& context, const AttentionForward& k) {
  run_chosen(context, k);
}

void run(CudaContext& context, const AttentionBackward& k) {
  run_chosen(context, k);
}

void set_attention_policy(CudaContext& context, AttentionPolicy policy) {
  choices_of(context).policy = policy;
}

bool cudnn_accepts(CudaContext& context, const AttentionForward& k) {
  return accepted(context, k);
}

bool cudnn_accepts(CudaContext& context, const AttentionBackward& k) {
  return accepted(context, k);
}

std::string attention_choices_text(CudaContext& context) {
  std::string text;
  for (const auto& [key, choice] : choices_of(context).choices) {
    text += fmt::format("{}{} {}", kAttentionLine, choice.cudnn, choice.version);
    for (const int64_t field : key) text += fmt::format(" {}", field);
    text += '\n';
  }
  return text;
}

bool take_attention_choice(CudaContext& context, const std::string& line) {
  std::istringstream fields(line.substr(std::string(kAttentionLine).size()));
  AttentionChoice choice;
  AttentionKey key;
  if (!(fields >> choice.cudnn >> choice.version)) return false;
  for (int64_t field = 0; fields >> field;) key.push_back(field);
  return choices_of(context).choices.emplace(key, choice).second;
}

}  // namespace egmla
