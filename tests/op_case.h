// One case object per op and shape drives every check of it: float64 finite differences, float against double, CUDA in
// float and bf16 against the CPU in double, and the texts of its shape errors.
#pragma once

#include <deque>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace egmla::test {

// What a case's function works on.
struct CaseRun {
  Tape& tape;
  std::vector<Var> x;
  std::deque<Parameter>& p;
  DType dtype;  // compute type

  Context& context() const { return tape.context(); }
  // The dtype of statistics and tables.
  DType statistics() const { return dtype == DType::f64 ? DType::f64 : DType::f32; }
};

struct OpCase {
  std::string name;  // "rms_norm/odd"
  std::vector<Shape> inputs;
  std::vector<Shape> parameters;
  std::function<std::vector<Var>(CaseRun&)> run;
  bool own_seed = false;  // the op has scaled its gradient itself (head_loss)
  double float_tolerance = 1e-5;
  double bf16_tolerance = 1e-2;
};

// How test names show a case.
inline std::ostream& operator<<(std::ostream& out, const OpCase& op_case) {
  return out << op_case.name;
}

struct ShapeError {
  std::string name;
  std::function<void(Tape&)> run;
  std::string text;  // must occur in the message
};

std::vector<OpCase> all_cases();
std::vector<ShapeError> all_shape_errors();

// Each family's file adds its own.
void add_linear_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors);
void add_norm_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors);
void add_activation_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors);
void add_attention_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors);
void add_gate_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors);
void add_embedding_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors);
void add_recompute_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors);

// Host values to and from a tensor of any floating dtype.
Tensor tensor_of(Context& context, const Shape& shape, const std::vector<double>& values, DType dtype);
std::vector<double> doubles_of(const Tensor& tensor);
// Standard normal values that bf16 holds exactly, drawn from (seed, stream).
std::vector<double> random_values(int64_t count, uint64_t seed, uint64_t stream);
// Uniform ids in [0, vocabulary).
std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary, uint64_t seed);
// A variable without gradient, for shape errors.
Var blank(Tape& tape, const Shape& shape);

// Inputs and parameters of one evaluation, and what came out.
struct CaseValues {
  std::vector<std::vector<double>> inputs, parameters;
};
struct CaseResult {
  std::vector<std::vector<double>> outputs, input_grads, parameter_grads;
  std::vector<std::string> op_names;
};
CaseValues draw_values(const OpCase& op_case, uint64_t seed);
// Runs forward and, when `gradients`, backward with fixed random cotangents.
CaseResult evaluate(const OpCase& op_case, const CaseValues& values, Context& context, DType dtype, bool gradients);
// sum of <output, cotangent>: the scalar whose gradient evaluate() computes.
double objective(const OpCase& op_case, const CaseResult& result);
// max |a - b| / max |b|.
double relative_error(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace egmla::test
