// Times attention with CUDA events. All repeats are queued before the first result is read, so the device never waits
// for the host between them; the median is reported.
#include <algorithm>
#include <cmath>

#include "core/cuda_state.h"
#include "kernels/attention.h"
#include "kernels/attention_choice.h"
#include "lab/bench_attention.h"
#include "lab/bench_tools.h"

namespace egmla {
namespace {

constexpr int kWarmUps = 5;
constexpr int kRepeats = 30;

// kRepeats + 1 events around as many runs.
class Stopwatch {
 public:
  Stopwatch() {
    for (cudaEvent_t& event : events_) check_cuda(cudaEventCreate(&event), "bench attention");
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }

  template <class Kernel>
  double median_ms(CudaContext& context, const Kernel& kernel) {
    const cudaStream_t stream = context.state().stream;
    for (int i = 0; i < kWarmUps; ++i) run(context, kernel);
    check_cuda(cudaEventRecord(events_[0], stream), "bench attention");
    for (int i = 0; i < kRepeats; ++i) {
      run(context, kernel);
      check_cuda(cudaEventRecord(events_[static_cast<size_t>(i) + 1], stream), "bench attention");
    }
    context.synchronize();
    std::vector<float> times(kRepeats);
    for (size_t i = 0; i < times.size(); ++i)
      check_cuda(cudaEventElapsedTime(&times[i], events_[i], events_[i + 1]), "bench attention");
    std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
    return times[kRepeats / 2];
  }

 private:
  std::vector<cudaEvent_t> events_ = std::vector<cudaEvent_t>(kRepeats + 1);
};

}  // namespace

std::vector<AttentionTiming> time_attention(Context& context, const AttentionShape& s) {
  CudaContext* const device = context.visit([](auto& backend) -> CudaContext* {
    if constexpr (std::is_same_v<std::decay_t<decltype(backend)>, CudaContext>) return &backend;
    return nullptr;
  });
  check(device, "bench attention: timing needs a CUDA context, found {}", context.name());
  // K and V of a head lie side by side and the rope key stands alone, as MLA's projections write them.
  const Shape qs = {s.B, s.T, s.H, s.dk + s.dr}, kvs = {s.B, s.T, s.H, s.dk + s.dv}, rs = {s.B, s.T, 1, s.dr};
  const Shape os = {s.B, s.T, s.H, s.dv}, rows = {s.B, s.H, s.T};
  const Tensor q = random_tensor(context, qs, DType::bf16), kv = random_tensor(context, kvs, DType::bf16),
               out_grad = random_tensor(context, os, DType::bf16);
  const Tensor rope = s.dr ? random_tensor(context, rs, DType::bf16) : Tensor{};
  const Tensor out = Tensor::empty(context, os, DType::bf16), lse = Tensor::empty(context, rows, DType::f32);
  const AttentionForward forward{.out = out.view(),
                                 .lse = lse.view(),
                                 .q = q.view(),
                                 .k = kv.view().columns(0, s.dk),
                                 .k_rope = s.dr ? rope.view() : View{},
                                 .v = kv.view().columns(s.dk, s.dv),
                                 .document_start = {},
                                 .scale = 1.0 / std::sqrt(static_cast<double>(s.dk + s.dr))};
  const Tensor q_grad = Tensor::empty(context, qs, DType::bf16), kv_grad = Tensor::empty(context, kvs, DType::bf16);
  const Tensor rope_grad = s.dr ? Tensor::empty(context, rs, DType::bf16) : Tensor{};
  const Tensor delta = Tensor::empty(context, rows, DType::f32);
  AttentionBackward backward{.q_grad = q_grad.view(),
                             .k_grad = kv_grad.view().columns(0, s.dk),
                             .k_rope_grad = s.dr ? rope_grad.view() : View{},
                             .v_grad = kv_grad.view().columns(s.dk, s.dv),
                             .delta = delta.view(),
                             .workspace = {},
                             .out_grad = out_grad.view(),
                             .out = out.view(),
                             .lse = lse.view(),
                             .q = forward.q,
                             .k = forward.k,
                             .k_rope = forward.k_rope,
                             .v = forward.v,
                             .document_start = {},
                             .scale = forward.scale};
  const int64_t size = attention_backward_workspace(*device, backward);
  const Tensor workspace = size ? Tensor::empty(context, {size}, DType::f32) : Tensor{};
  if (size) backward.workspace = workspace.view();

  Stopwatch stopwatch;
  const double qk = static_cast<double>(s.dk + s.dr), v = static_cast<double>(s.dv);
  const double pairs = static_cast<double>(s.B * s.H * s.T * s.T);
  std::vector<AttentionTiming> timings;
  const auto time = [&](const char* name, AttentionPolicy policy) {
    set_attention_policy(*device, policy);
    AttentionTiming& t = timings.emplace_back(AttentionTiming{.shape = s, .backend = name});
    t.forward_ms = stopwatch.median_ms(*device, forward);
    t.backward_ms = stopwatch.median_ms(*device, backward);
    t.forward_tflops = pairs * (qk + v) / t.forward_ms * 1e-9;
    t.backward_tflops = pairs * (3 * qk + 2 * v) / t.backward_ms * 1e-9;
  };
  time("native", AttentionPolicy::native);
  if (cudnn_accepts(*device, forward) && cudnn_accepts(*device, backward)) time("cudnn", AttentionPolicy::cudnn);
  set_attention_policy(*device, AttentionPolicy::fastest);
  return timings;
}

}  // namespace egmla
