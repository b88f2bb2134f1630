// The plan file: a first line that names card and library, then one line a plan: the fields of MatmulKey and the
// algorithm's opaque words in hexadecimal. Attention's choices stand behind them.
#include <filesystem>
#include <sstream>

#include "core/cuda_state.h"
#include "core/files.h"
#include "kernels/attention_choice.h"
#include "kernels/matmul_plans.h"

namespace egmla {
namespace {

std::string header(const CudaContext::State& state) {
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  return fmt::format("egmla matmul plans 2; card {}; driver {}; cublasLt {}", state.name, driver, cublasLtGetVersion());
}

// Calls function on every number of a key, in the file's order.
template <class Key, class F>
void for_each_field(Key& key, F&& function) {
  for (auto* field : {&key.m, &key.n, &key.k, &key.lda, &key.ldb, &key.ldc}) function(*field);
  for (auto* field : {&key.transpose_a, &key.transpose_b, &key.type_in, &key.type_out, &key.accumulate, &key.scale_a,
                      &key.scale_b, &key.align_a, &key.align_b, &key.align_c})
    function(*field);
}

}  // namespace

int load_matmul_plans(CudaContext& context, const std::string& path) {
  CudaContext::State& state = context.state();
  if (!std::filesystem::exists(path)) return 0;
  std::istringstream text(read_file(path));
  std::string line;
  if (!std::getline(text, line) || line != header(state)) return 0;
  int taken = 0;
  while (std::getline(text, line)) {
    if (line.rfind(kAttentionLine, 0) == 0) {
      taken += take_attention_choice(context, line);
      continue;
    }
    std::istringstream fields(line);
    MatmulKey key;
    MatmulPlan plan;
    for_each_field(key, [&](auto& field) { fields >> field; });
    fields >> std::hex;
    for (uint64_t& word : plan.algorithm.data) fields >> word;
    if (fields && state.matmul_plans.emplace(key, plan).second) ++taken;
  }
  return taken;
}

void save_matmul_plans(CudaContext& context, const std::string& path) {
  const CudaContext::State& state = context.state();
  std::string text = header(state) + "\n";
  for (const auto& [key, plan] : state.matmul_plans) {
    for_each_field(key, [&](const auto& field) { text += fmt::format("{} ", field); });
    for (const uint64_t word : plan.algorithm.data) text += fmt::format("{:x} ", word);
    text.back() = '\n';
  }
  text += attention_choices_text(context);
  write_file(path, text);
}

}  // namespace egmla
