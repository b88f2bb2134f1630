#include "op_case.h"

#include <algorithm>
#include <cmath>

#include "core/bf16.h"
#include "core/rng.h"

namespace egmla::test {

std::vector<OpCase> all_cases() {
  std::vector<OpCase> cases;
  std::vector<ShapeError> errors;
  for (auto add : {add_linear_cases, add_norm_cases, add_activation_cases, add_attention_cases, add_gate_cases,
                   add_embedding_cases, add_recompute_cases})
    add(cases, errors);
  return cases;
}

std::vector<ShapeError> all_shape_errors() {
  std::vector<OpCase> cases;
  std::vector<ShapeError> errors;
  for (auto add : {add_linear_cases, add_norm_cases, add_activation_cases, add_attention_cases, add_gate_cases,
                   add_embedding_cases, add_recompute_cases})
    add(cases, errors);
  return errors;
}

Tensor tensor_of(Context& context, const Shape& shape, const std::vector<double>& values, DType dtype) {
  if (dtype == DType::f64) return Tensor::from(context, shape, values);
  if (dtype == DType::f32) return Tensor::from(context, shape, std::vector<float>(values.begin(), values.end()));
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = bf16_from_float(static_cast<float>(values[i]));
  Tensor out = Tensor::empty(context, shape, dtype);
  context.copy_from_host(out.view().data, bits.data(), out.view().bytes());
  return out;
}

std::vector<double> doubles_of(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  if (tensor.dtype() == DType::f64) return tensor.to_host<double>();
  if (tensor.dtype() == DType::f32) {
    const std::vector<float> values = tensor.to_host<float>();
    return {values.begin(), values.end()};
  }
  std::vector<uint16_t> bits(static_cast<size_t>(tensor.shape().elements()));
  tensor.context().copy_to_host(bits.data(), tensor.view().data, tensor.view().bytes());
  std::vector<double> values(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) values[i] = float_from_bf16(bits[i]);
  return values;
}

std::vector<double> random_values(int64_t count, uint64_t seed, uint64_t stream) {
  std::vector<double> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = float_from_bf16(bf16_from_float(static_cast<float>(normal(seed, i, stream))));
  return values;
}

std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary, uint64_t seed) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(uniform(seed, i) * static_cast<double>(vocabulary));
  return ids;
}

Var blank(Tape& tape, const Shape& shape) {
  return tape.constant(Tensor::zeros(tape.context(), shape, DType::f32));
}

CaseValues draw_values(const OpCase& op_case, uint64_t seed) {
  CaseValues values;
  uint64_t stream = 0;
  for (const Shape& shape : op_case.inputs) values.inputs.push_back(random_values(shape.elements(), seed, stream++));
  for (const Shape& shape : op_case.parameters)
    values.parameters.push_back(random_values(shape.elements(), seed, stream++));
  return values;
}

namespace {

std::vector<double> cotangent(size_t output, size_t count) {
  return random_values(static_cast<int64_t>(count), 99, 1000 + output);
}

}  // namespace

CaseResult evaluate(const OpCase& op_case, const CaseValues& values, Context& context, DType dtype, bool gradients) {
  Tape tape(context);
  std::deque<Parameter> parameters;
  std::vector<Tensor> storage;
  const DType master = dtype == DType::f64 ? DType::f64 : DType::f32;
  for (size_t i = 0; i < op_case.parameters.size(); ++i) {
    const Shape& shape = op_case.parameters[i];
    storage.push_back(tensor_of(context, shape, values.parameters[i], dtype));
    storage.push_back(Tensor::zeros(context, shape, master));
    parameters.push_back({"p" + std::to_string(i), storage[2 * i].view(), storage[2 * i + 1].view()});
  }
  CaseRun run{tape, {}, parameters, dtype};
  // Leaves are copies: ops that rotate in place must not change `values`.
  for (size_t i = 0; i < op_case.inputs.size(); ++i)
    run.x.push_back(tape.variable(tensor_of(context, op_case.inputs[i], values.inputs[i], dtype)));
  const std::vector<Var> leaves = run.x;
  const std::vector<Var> outputs = op_case.run(run);
  CaseResult result;
  for (const Var& output : outputs) result.outputs.push_back(doubles_of(output.value));
  if (!gradients) return result;
  std::vector<std::pair<Var, Tensor>> roots;
  for (size_t i = 0; i < outputs.size(); ++i)
    roots.emplace_back(outputs[i], tensor_of(context, outputs[i].shape(), cotangent(i, result.outputs[i].size()),
                                             outputs[i].value.dtype()));
  if (op_case.own_seed) {
    tape.backward(outputs.front());
  } else {
    tape.backward(roots);
  }
  for (const Var& leaf : leaves) result.input_grads.push_back(doubles_of(tape.grad_of(leaf)));
  for (size_t i = 0; i < op_case.parameters.size(); ++i)
    result.parameter_grads.push_back(doubles_of(storage[2 * i + 1]));
  result.op_names.assign(tape.op_names().begin(), tape.op_names().end());
  return result;
}

double objective(const OpCase& op_case, const CaseResult& result) {
  if (op_case.own_seed) return result.outputs[0][0];
  double sum = 0;
  for (size_t i = 0; i < result.outputs.size(); ++i) {
    const std::vector<double> seed = cotangent(i, result.outputs[i].size());
    for (size_t j = 0; j < seed.size(); ++j) sum += seed[j] * result.outputs[i][j];
  }
  return sum;
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    difference = std::max(difference, std::abs(a[i] - b[i]));
    scale = std::max(scale, std::abs(b[i]));
  }
  return scale > 0 ? difference / scale : difference;
}

}  // namespace egmla::test
