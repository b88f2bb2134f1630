// Forward:  S = mask(scale Q K^T), P = softmax(S), lse = max + log(sum), O = P V.
// Backward: delta = rowsum(dO O), P = exp(mask(scale Q K^T - lse)), dV = P^T dO, dS = scale P (dO V^T - delta),
//           dK = dS^T Q, dQ = dS K. These are the patterns that cuDNN's fused attention engines know.
#include <spdlog/spdlog.h>

#include "kernels/attention_cudnn.h"

namespace egmla {
namespace {

void append(AttentionKey& key, const View& view) {
  for (int axis = 0; axis < 4; ++axis) key.push_back(view.defined() ? view.size(axis) : 0);
  for (int axis = 0; axis < 3; ++axis) key.push_back(view.defined() ? view.stride(axis) : 0);
}

}  // namespace

AttentionKey key_of(const AttentionForward& k) {
  AttentionKey key = {0};
  for (const View& view : {k.q, k.k, k.k_rope, k.v, k.out}) append(key, view);
  return key;
}

AttentionKey key_of(const AttentionBackward& k) {
  AttentionKey key = {1};
  for (const View& view : {k.q, k.k, k.k_rope, k.v, k.out, k.out_grad, k.q_grad, k.k_grad, k.v_grad}) append(key, view);
  return key;
}

}  // namespace egmla

#ifdef EGMLA_WITH_CUDNN
#include <limits>
#include <map>
#include <optional>

#include "core/cuda_state.h"
#include "kernels/cudnn_graph.cuh"
#include "kernels/layout.h"

namespace egmla {
namespace {

using cudnn::Dims;
using cudnn::Graph;
using cudnn::Plan;
using cudnn::Tensor;

// Ids of what a graph is given.
enum Id : int64_t { kQ = 1, kK, kV, kOut, kLse, kScale, kMasked, kOne, kOutGrad, kQGrad, kKGrad, kVGrad, kDelta };

// [B, T, heads, width] as cuDNN's [B, heads, T, width].
Tensor given(Graph& graph, Id id, const View& x) {
  return graph.given(id, {x.size(0), x.size(2), x.size(1), x.size(3)}, {x.stride(0), x.stride(2), x.stride(1), 1},
                     CUDNN_DATA_BFLOAT16);
}

// The same with rows and columns exchanged.
Tensor given_transposed(Graph& graph, Id id, const View& x) {
  return graph.given(id, {x.size(0), x.size(2), x.size(3), x.size(1)}, {x.stride(0), x.stride(2), 1, x.stride(1)},
                     CUDNN_DATA_BFLOAT16);
}

// One f32 a query: [B, H, T].
Tensor given_rows(Graph& graph, Id id, const View& q) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2);
  return graph.given(id, {B, H, T, 1}, {H * T, T, 1, 1}, CUDNN_DATA_FLOAT);
}

// Keys after their query count as minus infinity.
Tensor masked(Graph& graph, const Tensor& scores) {
  const Tensor row = graph.index(scores, 2), column = graph.index(scores, 3);
  const Tensor seen = graph.pointwise(CUDNN_POINTWISE_CMP_GE, {row, column}, CUDNN_DATA_BOOLEAN);
  return graph.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, graph.scalar(kMasked), seen});
}

void describe(Graph& graph, const AttentionForward& k) {
  const Tensor q = given(graph, kQ, k.q), kt = given_transposed(graph, kK, k.k), v = given(graph, kV, k.v);
  const Tensor out = given(graph, kOut, k.out), lse = given_rows(graph, kLse, k.q);
  const Tensor scores = graph.pointwise(CUDNN_POINTWISE_MUL, {graph.matmul(q, kt), graph.scalar(kScale)});
  const Tensor s = masked(graph, scores);
  const Tensor top = graph.reduce(CUDNN_REDUCE_TENSOR_MAX, s);
  const Tensor below = graph.pointwise(CUDNN_POINTWISE_SUB, {s, top});
  const Tensor e = graph.pointwise(CUDNN_POINTWISE_EXP, {below});
  const Tensor sum = graph.reduce(CUDNN_REDUCE_TENSOR_ADD, e);
  const Tensor log = graph.pointwise(CUDNN_POINTWISE_LOG, {sum});
  graph.pointwise_into(lse, CUDNN_POINTWISE_ADD, {top, log});
  const Tensor p = graph.pointwise(CUDNN_POINTWISE_DIV, {e, sum}, CUDNN_DATA_BFLOAT16);
  graph.matmul_into(out, p, v);
}

// out = a b, summed over the query heads that share a key head.
void product_by_key_head(Graph& graph, const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.dims[1] == a.dims[1]) return graph.matmul_into(out, a, b);
  const Tensor every_head = graph.between({a.dims[0], a.dims[1], a.dims[2], b.dims[3]}, CUDNN_DATA_BFLOAT16);
  graph.matmul_into(every_head, a, b);
  graph.reduce_into(out, CUDNN_REDUCE_TENSOR_ADD, every_head);
}

void describe(Graph& graph, const AttentionBackward& k) {
  const Tensor q = given(graph, kQ, k.q), kt = given_transposed(graph, kK, k.k), vt = given_transposed(graph, kV, k.v);
  const Tensor out = given(graph, kOut, k.out), out_grad = given(graph, kOutGrad, k.out_grad);
  const Tensor lse = given_rows(graph, kLse, k.q), delta = given_rows(graph, kDelta, k.q);
  const Tensor scale = graph.scalar(kScale);
  const Tensor products = graph.pointwise(CUDNN_POINTWISE_MUL, {out_grad, out});
  const Tensor sums = graph.reduce(CUDNN_REDUCE_TENSOR_ADD, products);
  graph.pointwise_into(delta, CUDNN_POINTWISE_MUL, {sums, graph.scalar(kOne)});  // the pattern holds a dropout scale

  const Tensor scores = graph.pointwise(CUDNN_POINTWISE_MUL, {graph.matmul(q, kt), scale});
  const Tensor log_p = masked(graph, graph.pointwise(CUDNN_POINTWISE_SUB, {scores, lse}));
  const Tensor p = graph.pointwise(CUDNN_POINTWISE_EXP, {log_p});
  product_by_key_head(graph, given(graph, kVGrad, k.v_grad), graph.transposed(p, CUDNN_DATA_BFLOAT16), out_grad);

  const Tensor centred = graph.pointwise(CUDNN_POINTWISE_SUB, {graph.matmul(out_grad, vt), delta});
  const Tensor weighted = graph.pointwise(CUDNN_POINTWISE_MUL, {centred, p});
  const Tensor ds = graph.pointwise(CUDNN_POINTWISE_MUL, {weighted, scale});
  product_by_key_head(graph, given(graph, kKGrad, k.k_grad), graph.transposed(ds, CUDNN_DATA_BFLOAT16), q);
  graph.matmul_into(given(graph, kQGrad, k.q_grad), ds, graph.transposed(kt, CUDNN_DATA_BFLOAT16));
}

// ---- whole keys in scratch ----

constexpr size_t kScratchStep = 256;  // bytes to which the parts of the scratch memory are aligned

View whole_keys(const View& k, const View& k_rope, void* data) {
  return make_view(data, {k.size(0), k.size(1), k.size(2), k.size(3) + k_rope.size(3)}, DType::bf16);
}

size_t scratch_bytes(const View& keys) {
  return (keys.bytes() + kScratchStep - 1) / kScratchStep * kScratchStep;
}

// The kernel with whole keys in place of k and k_rope, and the bytes of scratch before cuDNN's own.
size_t make_whole(AttentionForward& k, char* scratch) {
  if (!k.k_rope.defined()) return 0;
  k.k = whole_keys(k.k, k.k_rope, scratch);
  k.k_rope = {};
  return scratch_bytes(k.k);
}

size_t make_whole(AttentionBackward& k, char* scratch) {
  if (!k.k_rope.defined()) return 0;
  const size_t bytes = scratch_bytes(whole_keys(k.k, k.k_rope, scratch));
  k.k_grad = whole_keys(k.k, k.k_rope, scratch + bytes);
  k.k = whole_keys(k.k, k.k_rope, scratch);
  k.k_rope = k.k_rope_grad = {};
  return 2 * bytes;
}

void join_keys(CudaContext& context, const View& whole, const View& k, const View& k_rope) {
  const int64_t own = k.size(3);
  View shared = k_rope;  // one head seen as all of them
  shared.shape = {k.size(0), k.size(1), k.size(2), k_rope.size(3)};
  shared.strides = {k_rope.stride(0), k_rope.stride(1), 0, 1};
  egmla::run(context, Copy{.out = whole.columns(0, own), .x = k});
  egmla::run(context, Copy{.out = whole.columns(own, k_rope.size(3)), .x = shared});
}

class Engines final : public CudnnAttention {
 public:
  explicit Engines(CudaContext& context) {
    cudnn::check_cudnn(cudnn::library().create(&handle_), "cudnnCreate");
    cudnn::check_cudnn(cudnn::library().set_stream(handle_, context.state().stream), "cudnnSetStream");
  }
  Engines(const Engines&) = delete;
  Engines& operator=(const Engines&) = delete;
  ~Engines() override {
    cudaFree(scratch_);
    cudnn::library().destroy(handle_);
  }

  int64_t version() const override { return static_cast<int64_t>(cudnn::library().version()); }
  bool accepts(const AttentionForward& kernel) override { return plan_of(kernel).has_value(); }
  bool accepts(const AttentionBackward& kernel) override { return plan_of(kernel).has_value(); }
  void run(CudaContext& context, const AttentionForward& kernel) override;
  void run(CudaContext& context, const AttentionBackward& kernel) override;

 private:
  template <class Kernel>
  const std::optional<Plan>& plan_of(const Kernel& k) {
    const AttentionKey key = key_of(k);
    const auto found = plans_.find(key);
    return found != plans_.end() ? found->second : plans_.emplace(key, build(k)).first->second;
  }
  template <class Kernel>
  std::optional<Plan> build(Kernel k);
  void reserve(size_t bytes);

  cudnnHandle_t handle_ = nullptr;
  char* scratch_ = nullptr;  // used by one call at a time in stream order
  size_t scratch_bytes_ = 0;
  std::map<AttentionKey, std::optional<Plan>> plans_;  // empty: refused
};

template <class Kernel>
std::optional<Plan> Engines::build(Kernel k) {
  try {
    const size_t keys = make_whole(k, scratch_);
    Graph graph;
    describe(graph, k);
    Plan plan = graph.plan(handle_);
    reserve(keys + static_cast<size_t>(plan.workspace));
    return plan;
  } catch (const Error& error) {
    spdlog::info("{} of {} tokens, widths {} and {}, runs on our own kernel: {}", Kernel::kName, k.q.size(1),
                 k.q.size(3), k.v.size(3), error.what());
    return std::nullopt;
  }
}

void Engines::reserve(size_t bytes) {
  if (bytes <= scratch_bytes_) return;
  // The pool that tensors come from still grows: a part of the card stays free for it.
  constexpr size_t kShareLeft = 20;
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudnn: cudaMemGetInfo");
  void* data = nullptr;
  if (free < bytes + total / kShareLeft || cudaMalloc(&data, bytes) != cudaSuccess) {
    cudaGetLastError();  // not sticky: forget it
    fail("cudnn: {} bytes of scratch asked, {} of {} free", bytes, free, total);
  }
  check_cuda(cudaFree(scratch_), "cudnn: cudaFree");  // waits for those who use it
  scratch_ = static_cast<char*>(data);
  scratch_bytes_ = bytes;
}

void Engines::run(CudaContext& context, const AttentionForward& kernel) {
  const Plan& plan = plan_of(kernel).value();
  AttentionForward k = kernel;
  const size_t own = make_whole(k, scratch_);
  if (kernel.k_rope.defined()) join_keys(context, k.k, kernel.k, kernel.k_rope);
  const auto scale = static_cast<float>(k.scale);
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  plan.run(handle_,
           {{kQ, k.q.data},
            {kK, k.k.data},
            {kV, k.v.data},
            {kOut, k.out.data},
            {kLse, k.lse.data},
            {kScale, &scale},
            {kMasked, &kMinusInfinity}},
           scratch_ + own);
  context.state().check_launch(AttentionForward::kName);
}

void Engines::run(CudaContext& context, const AttentionBackward& kernel) {
  const Plan& plan = plan_of(kernel).value();
  AttentionBackward k = kernel;
  const size_t own = make_whole(k, scratch_);
  if (kernel.k_rope.defined()) join_keys(context, k.k, kernel.k, kernel.k_rope);
  const auto scale = static_cast<float>(k.scale);
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity(), kUnity = 1.0f;
  plan.run(handle_,
           {{kQ, k.q.data},
            {kK, k.k.data},
            {kV, k.v.data},
            {kOut, k.out.data},
            {kLse, k.lse.data},
            {kDelta, k.delta.data},
            {kOutGrad, k.out_grad.data},
            {kQGrad, k.q_grad.data},
            {kKGrad, k.k_grad.data},
            {kVGrad, k.v_grad.data},
            {kScale, &scale},
            {kMasked, &kMinusInfinity},
            {kOne, &kUnity}},
           scratch_ + own);
  context.state().check_launch(AttentionBackward::kName);
  if (!kernel.k_rope.defined()) return;
  const int64_t dk = kernel.k.size(3);
  egmla::run(context, Copy{.out = kernel.k_grad, .x = k.k_grad.columns(0, dk)});
  sum_rope_gradient(context, kernel.k_rope_grad, k.k_grad.columns(dk, kernel.k_rope.size(3)));
}

}  // namespace

std::shared_ptr<CudnnAttention> open_cudnn(CudaContext& context) {
  try {
    return std::make_shared<Engines>(context);
  } catch (const Error& error) {
    spdlog::info("attention runs on our own kernels: {}", error.what());
    return nullptr;
  }
}

}  // namespace egmla

#else

std::shared_ptr<egmla::CudnnAttention> egmla::open_cudnn(CudaContext&) {
  spdlog::info("attention runs on our own kernels: this build has no cuDNN");
  return nullptr;
}
#endif
