// train.recompute on CUDA: bf16 losses and gradients keep their bits.
#include <gtest/gtest.h>

#include "model_variants.h"
#include "op_case.h"

namespace egmla::test {
namespace {

class CudaRecompute : public testing::TestWithParam<Variant> {};

std::string name_of_variant(const testing::TestParamInfo<Variant>& info) {
  return info.param.name;
}

TEST_P(CudaRecompute, KeepsEveryBit) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device on this machine";
  static Context device{CudaDevice{0}};
  auto model = build(GetParam().model, device, DType::bf16);
  const Batch batch = make_batch(device, batch_ids(GetParam().model, 3, 33, 3), 3, 33, 9);
  const double loss = loss_and_gradients(*model, batch);
  const std::vector<double> gradients = doubles_of(model->parameters().grad());
  for (Recompute recompute : {Recompute::light, Recompute::full}) {
    model->set_recompute(recompute);
    EXPECT_EQ(loss_and_gradients(*model, batch), loss);
    EXPECT_TRUE(doubles_of(model->parameters().grad()) == gradients)
        << (recompute == Recompute::light ? "light" : "full");
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaRecompute, testing::ValuesIn(all_variants()), name_of_variant);

}  // namespace
}  // namespace egmla::test
