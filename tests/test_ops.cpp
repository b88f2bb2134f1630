// Every op case on the CPU: finite differences in float64, float against double, shape errors.
#include <gtest/gtest.h>

#include <cmath>

#include "op_case.h"

namespace egmla::test {
namespace {

class OpCases : public testing::TestWithParam<OpCase> {};

std::string test_name(const testing::TestParamInfo<OpCase>& info) {
  std::string name = info.param.name;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

// d objective / d direction by central differences of fourth order.
double numeric_slope(const OpCase& op_case, const CaseValues& values,
                     const std::function<void(CaseValues&, double)>& shift, Context& context) {
  const double h = 1e-3;
  const auto at = [&](double distance) {
    CaseValues moved = values;
    shift(moved, distance);
    return objective(op_case, evaluate(op_case, moved, context, DType::f64, false));
  };
  return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
}

void check_gradients(const OpCase& op_case, const CaseValues& values,
                     std::vector<std::vector<double>> CaseValues::*which, const std::vector<std::vector<double>>& grads,
                     Context& context) {
  for (size_t i = 0; i < grads.size(); ++i) {
    ASSERT_EQ(grads[i].size(), (values.*which)[i].size()) << op_case.name << ": no gradient reached operand " << i;
    for (uint64_t trial = 0; trial < 2; ++trial) {
      const std::vector<double> direction = random_values(static_cast<int64_t>(grads[i].size()), 7 + trial, i);
      double slope = 0, size = 0;
      for (size_t j = 0; j < direction.size(); ++j) {
        slope += grads[i][j] * direction[j];
        size += std::abs(grads[i][j] * direction[j]);
      }
      const double numeric = numeric_slope(
          op_case, values,
          [&](CaseValues& moved, double distance) {
            for (size_t j = 0; j < direction.size(); ++j) (moved.*which)[i][j] += distance * direction[j];
          },
          context);
      EXPECT_NEAR(slope, numeric, 1e-6 * std::max(size, 1e-3)) << op_case.name << " operand " << i;
    }
  }
}

TEST_P(OpCases, FiniteDifferencesInFloat64) {
  const OpCase& op_case = GetParam();
  Context context;
  const CaseValues values = draw_values(op_case, 3);
  const CaseResult result = evaluate(op_case, values, context, DType::f64, true);
  check_gradients(op_case, values, &CaseValues::inputs, result.input_grads, context);
  check_gradients(op_case, values, &CaseValues::parameters, result.parameter_grads, context);
}

TEST_P(OpCases, FloatAgreesWithDouble) {
  const OpCase& op_case = GetParam();
  Context context;
  const CaseValues values = draw_values(op_case, 4);
  const CaseResult exact = evaluate(op_case, values, context, DType::f64, true);
  const CaseResult found = evaluate(op_case, values, context, DType::f32, true);
  for (size_t i = 0; i < exact.outputs.size(); ++i)
    EXPECT_LT(relative_error(found.outputs[i], exact.outputs[i]), op_case.float_tolerance) << "output " << i;
  for (size_t i = 0; i < exact.input_grads.size(); ++i)
    EXPECT_LT(relative_error(found.input_grads[i], exact.input_grads[i]), op_case.float_tolerance)
        << "gradient of input " << i;
  for (size_t i = 0; i < exact.parameter_grads.size(); ++i)
    EXPECT_LT(relative_error(found.parameter_grads[i], exact.parameter_grads[i]), op_case.float_tolerance)
        << "gradient of parameter " << i;
}

INSTANTIATE_TEST_SUITE_P(Ops, OpCases, testing::ValuesIn(all_cases()), test_name);

TEST(Ops, WrongShapesNameTheOpAndTheShapes) {
  Context context;
  for (const ShapeError& error : all_shape_errors()) {
    Tape tape(context);
    try {
      error.run(tape);
      ADD_FAILURE() << error.name << ": accepted";
    } catch (const Error& caught) {
      EXPECT_NE(std::string(caught.what()).find(error.text), std::string::npos) << error.name << ": " << caught.what();
    }
  }
}

TEST(Ops, TokensOfEqualIdsAreGroupedInTheirOrder) {
  Context context;
  const std::vector<int32_t> ids = {3, 1, 3, 0, 7, 1, 3, 7};
  const ops::TokenIndex index = ops::make_token_index(context, ids, 2, 4, true);
  EXPECT_EQ(index.order.to_host<int32_t>(), (std::vector<int32_t>{3, 1, 5, 0, 2, 6, 4, 7}));
  EXPECT_EQ(index.segments.to_host<int32_t>(), (std::vector<int32_t>{0, 1, 3, 6, 8}));
}

}  // namespace
}  // namespace egmla::test
