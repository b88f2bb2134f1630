// Products through cuBLASLt, which is column-major: a row-major [M, N] is a column-major [N, M], so the operands change
// places and out^T = op(b)^T op(a)^T. Sums are f32 (never TF32). Only algorithms whose sums have a fixed order are
// asked for: no split of K, or partial sums in the workspace that a second kernel adds.
#include <algorithm>
#include <array>

#include "core/cuda_state.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/quantize.h"

namespace egmla {
namespace {

constexpr int kCandidates = 16;
constexpr int kRuns = 2;    // products in one timing
constexpr int kRounds = 3;  // timings of a candidate; the shortest counts

// Alignment of a pointer in bytes, as far as cuBLASLt cares.
int32_t alignment(const void* data) {
  const auto bits = reinterpret_cast<uintptr_t>(data) | 256u;
  return static_cast<int32_t>(bits & (~bits + 1));
}

cudaDataType_t type_of(const View& view) {
  return view.dtype == DType::e4m3 ? CUDA_R_8F_E4M3 : view.dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

// The product in cuBLASLt's terms, with its descriptors.
struct Problem {
  MatmulKey key;
  const void* a;
  const void* b;
  void* c;
  float alpha, beta;
  cublasLtMatmulDescOpaque_t description;
  cublasLtMatrixLayoutOpaque_t a_layout, b_layout, c_layout;

  explicit Problem(const Matmul& k);
  cublasStatus_t run(CudaContext::State& state, const cublasLtMatmulAlgo_t& algorithm, void* target) {
    return cublasLtMatmul(state.cublaslt, &description, &alpha, a, &a_layout, b, &b_layout, &beta, target, &c_layout,
                          target, &c_layout, &algorithm, state.matmul_workspace, kMatmulWorkspace, state.stream);
  }
};

// cublasLtMatmulMatrixScale_t and its attributes by their numbers, which toolkits before 12.9 have no names for.
constexpr size_t kBlockFactorsSince = 120900;
constexpr auto kScaleModeOfA = static_cast<cublasLtMatmulDescAttributes_t>(31);
constexpr auto kScaleModeOfB = static_cast<cublasLtMatmulDescAttributes_t>(32);
constexpr int32_t scale_mode(bool square_blocks) {
  return square_blocks ? 5 : 4;
}

// Rows apart in memory; a single row may carry any stride.
int64_t leading(const View& view) {
  return std::max(view.stride(0), view.size(1));
}

Problem::Problem(const Matmul& k)
    : a(k.b.data), b(k.a.data), c(k.out.data), alpha(static_cast<float>(k.alpha)), beta(k.accumulate ? 1.0f : 0.0f) {
  key.m = k.out.size(1);
  key.n = k.out.size(0);
  key.k = k.a.size(k.transpose_a ? 0 : 1);
  key.lda = leading(k.b);
  key.ldb = leading(k.a);
  key.ldc = leading(k.out);
  key.transpose_a = k.transpose_b;
  key.transpose_b = k.transpose_a;
  key.type_in = type_of(k.a);
  key.type_out = type_of(k.out);
  key.accumulate = k.accumulate;
  key.align_a = alignment(a);
  key.align_b = alignment(b);
  key.align_c = alignment(c);
  const cublasOperation_t op_a = key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                          op_b = key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  check_cublas(cublasLtMatmulDescInit(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F), Matmul::kName);
  const auto describe = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    check_cublas(cublasLtMatmulDescSetAttribute(&description, attribute, &value, sizeof(value)), Matmul::kName);
  };
  describe(CUBLASLT_MATMUL_DESC_TRANSA, op_a);
  describe(CUBLASLT_MATMUL_DESC_TRANSB, op_b);
  if (k.a.dtype == DType::e4m3) {
    key.scale_a = scale_mode(k.square_blocks_b);
    key.scale_b = scale_mode(k.square_blocks_a);
    describe(kScaleModeOfA, key.scale_a);
    describe(kScaleModeOfB, key.scale_b);
    describe(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, k.b_scales.data);
    describe(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, k.a_scales.data);
  }
  const auto layout = [](cublasLtMatrixLayoutOpaque_t& target, int32_t type, int64_t rows, int64_t columns,
                         int64_t ld) {
    check_cublas(cublasLtMatrixLayoutInit(&target, static_cast<cudaDataType_t>(type), static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(columns), ld),
                 Matmul::kName);
  };
  layout(a_layout, key.type_in, key.transpose_a ? key.k : key.m, key.transpose_a ? key.m : key.k, key.lda);
  layout(b_layout, key.type_in, key.transpose_b ? key.n : key.k, key.transpose_b ? key.k : key.n, key.ldb);
  layout(c_layout, key.type_out, key.m, key.n, key.ldc);
}

void check_e4m3(const Matmul& k) {
  const int64_t M = k.out.size(0), N = k.out.size(1), K = k.a.size(1);
  check(!k.transpose_a && k.transpose_b && K % kFp8Block == 0 && M % 16 == 0 && N % 16 == 0 &&
            !(k.square_blocks_a && k.square_blocks_b),
        "matmul: e4m3 needs a [M,K] and b [N,K], K in blocks of 128, M and N in multiples of 16, and 128 x 128 blocks "
        "on one side at most; a is {}{}, b is {}{}",
        k.a.shape.text(), k.transpose_a ? "^T" : "", k.b.shape.text(), k.transpose_b ? "^T" : "");
  check(k.a_scales.shape == fp8_scale_shape(M, K, k.square_blocks_a) &&
            k.b_scales.shape == fp8_scale_shape(N, K, k.square_blocks_b) && k.a_scales.dtype == DType::f32 &&
            k.b_scales.dtype == DType::f32,
        "matmul: factors must be f32 {} and {}; found {} and {}", fp8_scale_shape(M, K, k.square_blocks_a).text(),
        fp8_scale_shape(N, K, k.square_blocks_b).text(), k.a_scales.shape.text(), k.b_scales.shape.text());
}

void check_operands(const Matmul& k) {
  const int64_t inner_a = k.a.size(k.transpose_a ? 0 : 1), inner_b = k.b.size(k.transpose_b ? 1 : 0);
  check(k.out.size(0) == k.a.size(k.transpose_a ? 1 : 0) && k.out.size(1) == k.b.size(k.transpose_b ? 0 : 1) &&
            inner_a == inner_b,
        "matmul: out must be op(a) op(b); out is {}, a is {}{}, b is {}{}", k.out.shape.text(), k.a.shape.text(),
        k.transpose_a ? "^T" : "", k.b.shape.text(), k.transpose_b ? "^T" : "");
  const bool f32 = k.a.dtype == DType::f32 && k.out.dtype == DType::f32;
  const bool e4m3 = k.a.dtype == DType::e4m3;
  const bool narrow = (k.a.dtype == DType::bf16 || e4m3) && (k.out.dtype == DType::bf16 || k.out.dtype == DType::f32);
  check(k.a.dtype == k.b.dtype && (f32 || narrow),
        "matmul: CUDA multiplies bf16 or e4m3 into bf16 or f32, and f32 into f32; found {} x {} into {}",
        name_of(k.a.dtype), name_of(k.b.dtype), name_of(k.out.dtype));
  if (e4m3) check_e4m3(k);
}

// What the library proposes, best guess first.
std::vector<cublasLtMatmulAlgo_t> candidates(CudaContext::State& state, Problem& problem) {
  cublasLtMatmulPreferenceOpaque_t preference;
  check_cublas(cublasLtMatmulPreferenceInit(&preference), Matmul::kName);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check_cublas(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)), Matmul::kName);
  };
  const MatmulKey& key = problem.key;
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kMatmulWorkspace});
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.align_a));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.align_b));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.align_c));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.align_c));
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results;
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(state.cublaslt, &problem.description, &problem.a_layout,
                                                               &problem.b_layout, &problem.c_layout, &problem.c_layout,
                                                               &preference, kCandidates, results.data(), &found);
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; ++i) {
    if (results[static_cast<size_t>(i)].state == CUBLAS_STATUS_SUCCESS)
      algorithms.push_back(results[static_cast<size_t>(i)].algo);
  }
  check(!algorithms.empty(), "matmul: cuBLASLt offers nothing for m {}, n {}, k {}, strides {}, {}, {}: {}", key.m,
        key.n, key.k, key.lda, key.ldb, key.ldc, cublasLtGetStatusString(status));
  return algorithms;
}

// Two events around a few products.
class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
    check_cuda(cudaEventCreate(&begin_), "matmul: cudaEventCreate");
    check_cuda(cudaEventCreate(&end_), "matmul: cudaEventCreate");
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void start() { check_cuda(cudaEventRecord(begin_, stream_), "matmul: cudaEventRecord"); }
  float milliseconds() {
    check_cuda(cudaEventRecord(end_, stream_), "matmul: cudaEventRecord");
    check_cuda(cudaEventSynchronize(end_), "matmul: cudaEventSynchronize");
    float time = 0;
    check_cuda(cudaEventElapsedTime(&time, begin_, end_), "matmul: cudaEventElapsedTime");
    return time;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// The output's place while candidates are timed, outside the pool so that nothing of it stays.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    if (cudaMalloc(&data_, bytes) == cudaSuccess) return;
    cudaGetLastError();  // no room: the caller does without measuring
    data_ = nullptr;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { cudaFree(data_); }
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

float best_time(CudaContext::State& state, Problem& problem, const cublasLtMatmulAlgo_t& algorithm, void* target,
                Stopwatch& stopwatch) {
  constexpr float kRefused = 1e30f;
  if (problem.run(state, algorithm, target) != CUBLAS_STATUS_SUCCESS) return kRefused;  // also warms up
  float best = kRefused;
  for (int round = 0; round < kRounds; ++round) {
    stopwatch.start();
    for (int i = 0; i < kRuns; ++i) check_cublas(problem.run(state, algorithm, target), Matmul::kName);
    best = std::min(best, stopwatch.milliseconds());
  }
  return best;
}

// Times the candidates on the operands themselves, with the result going to memory that nobody reads.
cublasLtMatmulAlgo_t fastest(CudaContext::State& state, Problem& problem) {
  const std::vector<cublasLtMatmulAlgo_t> algorithms = candidates(state, problem);
  const MatmulKey& key = problem.key;
  const size_t out_bytes = static_cast<size_t>((key.n - 1) * key.ldc + key.m) * (key.type_out == CUDA_R_16BF ? 2 : 4);
  const Scratch scratch(out_bytes);
  if (!scratch.data()) return algorithms.front();
  Stopwatch stopwatch(state.stream);
  size_t best = 0;
  float best_so_far = 0;
  for (size_t i = 0; i < algorithms.size(); ++i) {
    const float time = best_time(state, problem, algorithms[i], scratch.data(), stopwatch);
    if (i > 0 && time >= best_so_far) continue;
    best = i;
    best_so_far = time;
  }
  return algorithms[best];
}

// A plan from a file may stem from a library that names other algorithms by the same bytes.
bool accepts(CudaContext::State& state, Problem& problem, const cublasLtMatmulAlgo_t& algorithm) {
  cublasLtMatmulHeuristicResult_t result{};
  return cublasLtMatmulAlgoCheck(state.cublaslt, &problem.description, &problem.a_layout, &problem.b_layout,
                                 &problem.c_layout, &problem.c_layout, &algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= kMatmulWorkspace;
}

}  // namespace

bool multiplies_e4m3(CudaContext& context) {
  return context.state().capability == 90 && cublasLtGetVersion() >= kBlockFactorsSince;
}

void run(CudaContext& context, const Matmul& k) {
  check_operands(k);
  if (k.out.elements() == 0) return;
  if (k.a.elements() == 0) {
    if (!k.accumulate) run(context, Fill{.out = k.out, .value = 0});
    return;
  }
  CudaContext::State& state = context.state();
  Problem problem(k);
  MatmulPlan& plan = state.matmul_plans[problem.key];
  if (!plan.accepted) {
    constexpr cublasLtMatmulAlgo_t kNone{};
    const bool loaded =
        !std::equal(std::begin(plan.algorithm.data), std::end(plan.algorithm.data), std::begin(kNone.data));
    if (!loaded || !accepts(state, problem, plan.algorithm)) plan.algorithm = fastest(state, problem);
    plan.accepted = true;
  }
  check_cublas(problem.run(state, plan.algorithm, problem.c), Matmul::kName);
  state.check_launch(Matmul::kName);
}

}  // namespace egmla
