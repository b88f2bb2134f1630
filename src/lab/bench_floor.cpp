#include "lab/bench_floor.h"

#include "kernels/attention.h"
#include "kernels/matmul.h"
#include "lab/bench_tools.h"

namespace egmla {
namespace {

double seconds_alone(Context& context, Matmul k) {
  std::vector<Tensor> memory;
  for (View* view : {&k.out, &k.a, &k.b, &k.a_scales, &k.b_scales}) {
    if (!view->defined()) continue;
    memory.push_back(random_like(context, *view));
    *view = memory.back().view();
  }
  return seconds_of(context, [&] { launch(context, k); });
}

// Fresh operands of an attention, forward run once so that out and lse are true.
class AttentionOperands {
 public:
  // Forward is `k` with other memory.
  AttentionOperands(Context& context, const AttentionForward& k)
      : out_(random_like(context, k.out)),
        lse_(random_like(context, k.lse)),
        q_(random_like(context, k.q)),
        k_(random_like(context, k.k)),
        k_rope_(random_like(context, k.k_rope)),
        v_(random_like(context, k.v)),
        document_start_(random_like(context, k.document_start)),
        forward_{.out = out_.view(),
                 .lse = lse_.view(),
                 .q = q_.view(),
                 .k = k_.view(),
                 .k_rope = k_rope_.view(),
                 .v = v_.view(),
                 .document_start = document_start_.view(),
                 .scale = k.scale} {}

  const AttentionForward& forward() const { return forward_; }

 private:
  Tensor out_, lse_, q_, k_, k_rope_, v_, document_start_;
  AttentionForward forward_;
};

double seconds_alone(Context& context, const AttentionForward& k) {
  const AttentionOperands operands(context, k);
  return seconds_of(context, [&] { launch(context, operands.forward()); });
}

double seconds_alone(Context& context, AttentionBackward k) {
  const AttentionOperands operands(context, {.out = k.out,
                                             .lse = k.lse,
                                             .q = k.q,
                                             .k = k.k,
                                             .k_rope = k.k_rope,
                                             .v = k.v,
                                             .document_start = k.document_start,
                                             .scale = k.scale});
  const AttentionForward& forward = operands.forward();
  launch(context, forward);
  std::vector<Tensor> memory;
  for (View* view : {&k.q_grad, &k.k_grad, &k.k_rope_grad, &k.v_grad, &k.delta, &k.workspace, &k.out_grad}) {
    memory.push_back(random_like(context, *view));
    *view = memory.back().view();
  }
  k.out = forward.out;
  k.lse = forward.lse;
  k.q = forward.q;
  k.k = forward.k;
  k.k_rope = forward.k_rope;
  k.v = forward.v;
  k.document_start = forward.document_start;
  return seconds_of(context, [&] { launch(context, k); });
}

}  // namespace

StepFloor measure_floor(Context& context, Profile& profile, int64_t steps) {
  const double scale = 1.0 / static_cast<double>(steps);
  const double bandwidth = copy_bandwidth(context);
  StepFloor floor;
  floor.copy_gb_per_s = 1e-9 * bandwidth;
  for (const auto& [label, entry] : profile.entries()) {
    FloorPart* part = &floor.attention;
    double seconds = 0;
    const double calls = static_cast<double>(entry.calls), bytes = static_cast<double>(entry.bytes);
    if (const auto* matmul = std::any_cast<Matmul>(&entry.kernel)) {
      part = &floor.products;
      seconds = calls * seconds_alone(context, *matmul);
    } else if (const auto* forward = std::any_cast<AttentionForward>(&entry.kernel)) {
      seconds = calls * seconds_alone(context, *forward);
    } else if (const auto* backward = std::any_cast<AttentionBackward>(&entry.kernel)) {
      seconds = calls * seconds_alone(context, *backward);
    } else {
      part = &floor.other;
      seconds = bytes / bandwidth;
      floor.other_gb += 1e-9 * bytes * scale;
    }
    part->ms += 1e3 * entry.seconds * scale;
    part->floor_ms += 1e3 * seconds * scale;
  }
  return floor;
}

}  // namespace egmla
