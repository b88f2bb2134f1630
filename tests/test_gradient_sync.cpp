// Sums of gradients during backward: what leaves is complete, in an order all ranks share, and changes no bit; sharing
// the optimizer's state out changes none either.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "dist/gradient_sync.h"
#include "dist/weight_check.h"
#include "egmla_command.h"
#include "kernels/elementwise.h"
#include "model_variants.h"
#include "train/gradients.h"

namespace egmla::test {
namespace {

// Stands for one of several ranks: it notes what it is asked to exchange, and exchanges nothing.
class NotingRank final : public Communicator {
 public:
  explicit NotingRank(int ranks) : Communicator(Rank{0, ranks, 0, ranks}) {}
  struct Sent {
    const float* data;
    std::vector<float> values;
  };
  std::vector<Sent> summed;
  std::vector<const void*> gathered;

  void all_reduce_sum(const View& flat) override {
    const float* data = flat.as<float>();
    summed.push_back({data, {data, data + flat.elements()}});
  }
  void reduce_scatter_sum(const View& flat) override { all_reduce_sum(flat); }
  void all_gather(const View& flat) override { gathered.push_back(flat.data); }
  void broadcast(const View&) override {}
  void wait() override {}
  void mark(size_t) override {}
  void wait_for(size_t) override {}
  void gather_bytes(const void* own, size_t bytes, void* all) override {
    for (int rank = 0; rank < size(); ++rank)
      std::memcpy(static_cast<char*>(all) + static_cast<size_t>(rank) * bytes, own, bytes);
  }
};

std::vector<HostBatch> batches_of(const ModelConfig& model, int64_t sequences, int64_t B, uint64_t seed) {
  constexpr int64_t T = 16;
  const BatchBuilder builder(T, std::nullopt);
  const std::vector<int32_t> ids = batch_ids(model, sequences, T, seed);
  std::vector<HostBatch> batches;
  for (int64_t i = 0; i < sequences; ++i) {
    if (i % B == 0) batches.emplace_back();
    builder.append(batches.back(), ids.data() + i * (T + 1), T + 1);
  }
  return batches;
}

std::string name_of_variant(const testing::TestParamInfo<Variant>& info) {
  return info.param.name;
}

class SyncModels : public testing::TestWithParam<Variant> {};

TEST_P(SyncModels, BucketsLeaveCompleteAndBeforeTheEnd) {
  Context context;
  for (const Recompute recompute : {Recompute::none, Recompute::light, Recompute::full}) {
    Transformer model(GetParam().model);
    model.set_recompute(recompute);
    ParameterStore& store = model.parameters();
    const std::vector<Bucket> buckets = plan_buckets(store, 1);
    model.allocate(context, DType::f32);
    store.initialize(1);
    NotingRank ranks(2);
    GradientSync sync(store, ranks, buckets);
    for (int step = 1; step <= 2; ++step) {
      ranks.summed.clear();
      accumulate_gradients(model, batches_of(GetParam().model, 3, 1, 5), &sync);
      ASSERT_EQ(ranks.summed.size(), buckets.size());
      EXPECT_EQ(sync.overlapped(), static_cast<int64_t>(buckets.size()));
      const float* flat = store.grad().view().as<float>();
      std::map<const float*, const Bucket*> unsent;
      for (const Bucket& bucket : buckets) unsent[flat + bucket.span.begin] = &bucket;
      for (const auto& [data, values] : ranks.summed) {
        const auto found = unsent.extract(data);
        ASSERT_FALSE(found.empty());
        const Bucket& bucket = *found.mapped();
        ASSERT_EQ(static_cast<int64_t>(values.size()), bucket.span.size);
        EXPECT_EQ(std::memcmp(values.data(), data, values.size() * sizeof(float)), 0)
            << bucket.parameters.front()->name << " was written after it had left";
      }
      EXPECT_TRUE(unsent.empty());
      // The largest gradient that is complete last travels beside products of the first layer.
      EXPECT_EQ(ranks.summed.back().data == flat + buckets.back().span.begin, recompute == Recompute::full);
    }
    for (const PlacedParameter& place : store.places())
      for (const Parameter* parameter : place.trained) EXPECT_EQ(parameter->uses, 0) << parameter->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, SyncModels, testing::ValuesIn(all_variants()), name_of_variant);

TEST(Buckets, CoverTheBuffersOnceInTheOrderOfBackward) {
  for (const char* name : {"egmla", "egmla_shared_table", "mha_gqa_untied", "egmla_separate_sigmoid"}) {
    Context context;
    Transformer model(variant(name).model);
    ParameterStore& store = model.parameters();
    for (const int64_t elements : {int64_t{1}, int64_t{2000}, int64_t{1} << 40}) {
      const std::vector<Bucket> buckets = plan_buckets(store, elements);
      size_t parameters = 0, trained = 0;
      for (const PlacedParameter& place : store.places()) trained += place.trained.size();
      std::vector<Span> spans;
      for (const Bucket& bucket : buckets) {
        parameters += bucket.parameters.size();
        spans.push_back(bucket.span);
        EXPECT_EQ(bucket.span.begin % 64, 0);
        if (bucket.parameters.size() > 2) {  // two may be windows of one
          EXPECT_LE(bucket.span.size, elements);
        }
      }
      EXPECT_EQ(parameters, trained);
      std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
      int64_t end = 0;
      for (const Span& span : spans) {
        EXPECT_EQ(span.begin, end);
        end += span.size;
      }
      EXPECT_GE(end, store.elements());
      EXPECT_EQ(buckets.back().parameters.back()->name, "model.embed_tokens.weight") << name;
      for (const int ranks : {2, 3, 8}) {
        int64_t owned = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          int64_t at = 0;
          for (const OwnPart& part : own_parts(buckets, Rank{.number = rank, .count = ranks})) {
            EXPECT_EQ(part.at, at);
            at += part.span.size;
          }
          owned += at;
        }
        EXPECT_EQ(owned, end);
      }
    }
  }
  Transformer untied(variant("mha_gqa_untied").model);
  EXPECT_EQ(plan_buckets(untied.parameters(), 1).front().parameters.front()->name, "lm_head.weight");
}

TEST(GradientSync, SendsUnusedParametersAsZeros) {
  Context context;
  ParameterStore store;
  store.add({{.path = "unused", .rows = 3, .columns = 5}});
  Parameter* used = store.add({{.path = "used", .rows = 4, .columns = 5}});
  NotingRank ranks(2);
  std::vector<Bucket> buckets = plan_buckets(store, 1);
  store.allocate(context, DType::f32);
  launch(context, Fill{.out = store.grad().view(), .value = 7});
  GradientSync sync(store, ranks, std::move(buckets));
  store.begin_step();
  Tape tape(context);
  sync.begin_last_backward();
  const Var x = tape.variable(Tensor::from(context, {2, 5}, std::vector<float>(10, 1.F)));
  const Var y = ops::linear(x, *used);
  tape.backward(y, Tensor::from(context, {2, 4}, std::vector<float>(8, 1.F)));
  EXPECT_EQ(ranks.summed.size(), 1U);
  store.end_step();
  sync.finish();
  ASSERT_EQ(ranks.summed.size(), 2U);
  EXPECT_EQ(sync.overlapped(), 1);
  EXPECT_EQ(ranks.summed[0].values[0], 2.F);
  EXPECT_EQ(ranks.summed[1].values[0], 0.F);
  sync.begin_last_backward();
  sync.gradient_ready(*used);
  EXPECT_THROW(sync.gradient_ready(*used), Error);
}

#ifdef EGMLA_WITH_MPI

// Some steps of a model, and all that they leave behind.
struct Steps {
  std::vector<float> losses, norms, gradients, weights, exp_avg, exp_avg_sq;
  int64_t held = 0;  // elements of a moment on this rank
  bool operator==(const Steps& other) const {
    return losses == other.losses && norms == other.norms && gradients == other.gradients && weights == other.weights &&
           exp_avg == other.exp_avg && exp_avg_sq == other.exp_avg_sq;
  }
};

constexpr int64_t kSequences = 12;  // of a step, all ranks together

Steps run_steps(Communicator& ranks, int64_t bucket, int64_t stage, double grad_clip = 0.5,
                StateDtype moments = StateDtype::fp32) {
  Context context;
  const ModelConfig config = variant("egmla").model;
  Transformer model(config);
  ParameterStore& store = model.parameters();
  std::vector<Bucket> buckets = plan_buckets(store, bucket);
  model.allocate(context, DType::f32, parts_to_update(buckets, ranks.rank(), stage));
  store.initialize(3);
  AdamWOptimizer optimizer(store, {.lr = 1e-2, .state_dtype = moments}, 2, 0.05, 7);
  GradientSync sync(store, ranks, std::move(buckets));
  sync.attach(optimizer);
  Steps out;
  out.held = optimizer.exp_avg().shape().elements();
  for (int64_t step = 1; step <= 4; ++step) {
    std::vector<HostBatch> all = batches_of(config, kSequences, 2, static_cast<uint64_t>(step)), own;
    const size_t share = all.size() / static_cast<size_t>(ranks.size()),
                 first = share * static_cast<size_t>(ranks.rank().number);
    own.assign(all.begin() + static_cast<std::ptrdiff_t>(first),
               all.begin() + static_cast<std::ptrdiff_t>(first + share));
    float loss = 0;
    for (const Tensor& part : accumulate_gradients(model, own, &sync)) loss += part.to_host<float>().front();
    out.losses.push_back(ranks.sum(loss));
    if (step == 1 && !store.shared_out()) out.gradients = store.grad().to_host<float>();
    out.norms.push_back(optimizer.measure_grad_norm().to_host<float>().front());
    optimizer.step(1e-2, step, grad_clip);
  }
  sync.finish_weights();
  check_equal_weights(store.master(), ranks, 4);
  out.weights = store.master().to_host<float>();
  out.exp_avg = sync.collect(optimizer.exp_avg()).to_host<float>();
  out.exp_avg_sq = sync.collect(optimizer.exp_avg_sq()).to_host<float>();
  return out;
}

// The sums as one exchange behind backward.
std::vector<float> plain_sum(Communicator& ranks) {
  Context context;
  const ModelConfig config = variant("egmla").model;
  const auto model = build(config, context, DType::f32, 3);
  std::vector<HostBatch> batches = batches_of(config, kSequences, 2, 1);
  const size_t share = batches.size() / static_cast<size_t>(ranks.size()),
               first = share * static_cast<size_t>(ranks.rank().number);
  int64_t counted = 0;
  for (const HostBatch& batch : batches) counted += batch.counted;
  ParameterStore& store = model->parameters();
  store.begin_step();
  for (size_t i = first; i < first + share; ++i) {
    Tape tape(context);
    tape.backward(model->loss(tape, to_device(context, batches[i], true), 1.0 / static_cast<double>(counted)).loss);
  }
  store.end_step();
  ranks.all_reduce_sum(store.grad().view());
  return store.grad().to_host<float>();
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  return largest;
}

// Runs inside each rank that GradientSync.OverlapAndSharingChangeNoBit starts.
TEST(RankProcess, DISABLED_Steps) {
  const auto ranks = connect_processes();
  ASSERT_GT(ranks->size(), 1);
  const Steps whole = run_steps(*ranks, int64_t{1} << 40, 0);
  EXPECT_EQ(whole.gradients, plain_sum(*ranks));
  EXPECT_TRUE(run_steps(*ranks, int64_t{1} << 40, 0) == whole);
  // Other buckets: the same sums. The norm adds its parts in another order, so that clipped steps may differ by its
  // rounding; unclipped ones may not.
  EXPECT_EQ(run_steps(*ranks, 700, 0).gradients, whole.gradients);
  for (const StateDtype moments : {StateDtype::fp32, StateDtype::bf16}) {
    EXPECT_EQ(run_steps(*ranks, 700, 0, 0, moments).weights,
              run_steps(*ranks, int64_t{1} << 40, 0, 0, moments).weights);
    for (const int64_t bucket : {int64_t{1} << 40, int64_t{700}}) {
      const Steps all = run_steps(*ranks, bucket, 0, 0.5, moments), shared = run_steps(*ranks, bucket, 1, 0.5, moments);
      EXPECT_EQ(shared.losses, all.losses);
      EXPECT_EQ(shared.norms, all.norms);
      EXPECT_EQ(shared.weights, all.weights);
      EXPECT_EQ(shared.exp_avg, all.exp_avg);
      EXPECT_EQ(shared.exp_avg_sq, all.exp_avg_sq);
      EXPECT_LT(shared.held, all.held / ranks->size() + all.held / 4);
      EXPECT_EQ(ranks->sum(shared.held), all.held);
      if (moments == StateDtype::bf16) {
        EXPECT_NE(all.exp_avg, whole.exp_avg);
      }
    }
  }
  LocalCommunicator alone;
  const Steps one = run_steps(alone, int64_t{1} << 40, 1);
  EXPECT_LT(largest_difference(one.losses, whole.losses), 1e-5);
  EXPECT_LT(largest_difference(one.gradients, whole.gradients), 1e-6);
  EXPECT_LT(largest_difference(one.weights, whole.weights), 2e-4);
}

TEST(GradientSync, OverlapAndSharingChangeNoBit) {
  for (const int ranks : {2, 3}) {
    const Outcome outcome = in_ranks(ranks, "RankProcess.DISABLED_Steps");
    EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
    EXPECT_NE(outcome.out.find("1 test from 1 test suite ran."), std::string::npos) << outcome.out;
  }
}

#endif

}  // namespace
}  // namespace egmla::test
