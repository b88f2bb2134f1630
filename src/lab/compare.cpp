#include "lab/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "infer/evaluator.h"
#include "infer/trained_model.h"
#include "kernels/cross_entropy.h"
#include "train/progress.h"

namespace egmla {
namespace {

constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();

// 0, 1, 3, 10, 30, 100 ... and no end.
std::vector<int64_t> bin_borders() {
  std::vector<int64_t> borders = {0};
  for (int64_t power = 1; power <= 100'000'000; power *= 10) {
    borders.push_back(power);
    borders.push_back(3 * power);
  }
  borders.push_back(kNoEnd);
  return borders;
}

// Sums of a bin.
struct Sums {
  double loss = 0, other = 0, difference = 0, squares = 0;
  int64_t tokens = 0;

  void add(double a, double b) {
    loss += a;
    other += b;
    difference += b - a;
    squares += (b - a) * (b - a);
    ++tokens;
  }
  CountBin bin(int64_t from, int64_t to) const {
    const auto n = static_cast<double>(tokens);
    const double mean = difference / n;
    const double variance = tokens > 1 ? std::max(0.0, squares - n * mean * mean) / (n - 1) : std::nan("");
    return {.from = from,
            .to = to,
            .tokens = tokens,
            .loss = loss / n,
            .other = other / n,
            .error = std::sqrt(variance / n)};
  }
};

// Inputs of the positions whose losses count, in the order of evaluate().
std::vector<int32_t> counted_inputs(const ValidationSet& data, const BatchBuilder& builder) {
  std::vector<int32_t> ids(static_cast<size_t>(builder.sequence_length() + 1)), inputs;
  for (int64_t i = 0; i < data.sequences(); ++i) {
    HostBatch host;
    const ValidationSet::Window window = data.read(i, ids.data());
    builder.append(host, ids.data(), window.count, window.first_counted);
    for (size_t n = 0; n < host.targets.size(); ++n)
      if (host.targets[n] != kIgnoreIndex) inputs.push_back(host.inputs[n]);
  }
  return inputs;
}

// How often each id was an input in training, from the very samples that were read.
std::vector<int64_t> trained_counts(const TrainedModel& trained) {
  const DataConfig& data = trained.config.data;
  const TokenLoader loader(data.train, data.order, data.sequence_length, trained.config.model.vocab_size,
                           static_cast<uint64_t>(trained.config.run.seed));
  std::vector<int64_t> counts(static_cast<size_t>(trained.config.model.vocab_size));
  std::vector<int32_t> ids(static_cast<size_t>(data.sequence_length + 1));
  for (int64_t sample = 0; sample < trained.state.samples; ++sample) {
    loader.read(sample, ids.data());
    for (size_t i = 0; i + 1 < ids.size(); ++i) ++counts[static_cast<size_t>(ids[i])];
  }
  return counts;
}

std::vector<double> losses_of(TrainedModel& trained, const ValidationSet& data, const BatchBuilder& builder) {
  std::vector<double> losses;
  evaluate(*trained.model, data, builder,
           {.micro_batch_size = trained.config.train.micro_batch_size,
            .per_token = [&](double loss) { losses.push_back(loss); }});
  return losses;
}

std::string range_text(const CountBin& bin) {
  if (bin.to == bin.from + 1) return std::to_string(bin.from);
  if (bin.to == kNoEnd) return fmt::format("{} or more", format_count(static_cast<double>(bin.from)));
  return fmt::format("{} to {}", format_count(static_cast<double>(bin.from)),
                     format_count(static_cast<double>(bin.to - 1)));
}

}  // namespace

Comparison compare_losses(const std::vector<double>& losses, const std::vector<double>& others,
                          const std::vector<int32_t>& inputs, const std::vector<int64_t>& counts) {
  check(losses.size() == others.size() && losses.size() == inputs.size(),
        "compare: {} losses, {} of the other and {} inputs; expected as many of each", losses.size(), others.size(),
        inputs.size());
  check_usage(!losses.empty(), "compare: the validation data holds no token to predict");
  const std::vector<int64_t> borders = bin_borders();
  std::vector<Sums> sums(borders.size() - 1);
  Sums all;
  for (size_t n = 0; n < losses.size(); ++n) {
    const int64_t seen = counts.at(static_cast<size_t>(inputs[n]));
    const auto bin = std::upper_bound(borders.begin(), borders.end(), seen) - borders.begin() - 1;
    sums[static_cast<size_t>(bin)].add(losses[n], others[n]);
    all.add(losses[n], others[n]);
  }
  Comparison out;
  out.all = all.bin(0, kNoEnd);
  for (size_t bin = 0; bin < sums.size(); ++bin)
    if (sums[bin].tokens > 0) out.bins.push_back(sums[bin].bin(borders[bin], borders[bin + 1]));
  return out;
}

Comparison compare_runs(const std::string& run, const std::string& other, const std::vector<std::string>& overrides) {
  TrainedModel first = load_trained_model(run, overrides), second = load_trained_model(other, overrides);
  const Config& config = first.config;
  check_usage(config.model.vocab_size == second.config.model.vocab_size,
              "compare: the vocabularies hold {} and {} tokens; expected two models of the same tokens",
              config.model.vocab_size, second.config.model.vocab_size);
  check_usage(!config.data.val.empty(), "data.val: no validation data; add data.val=SHARD");
  std::optional<int32_t> border;
  if (config.data.mask_documents) border = first.need_tokenizer().end_of_text();
  const ValidationSet data(config.data.val, config.data.sequence_length, config.model.vocab_size);
  const BatchBuilder builder(config.data.sequence_length, border);
  Comparison out = compare_losses(losses_of(first, data, builder), losses_of(second, data, builder),
                                  counted_inputs(data, builder), trained_counts(first));
  out.run = first.checkpoint;
  out.other = second.checkpoint;
  return out;
}

std::string comparison_text(const Comparison& comparison) {
  std::string out = fmt::format("{} against {}\n{:>16} {:>10} {:>9} {:>9}  {}\n", comparison.run, comparison.other,
                                "seen in training", "tokens", "loss", "other", "benefit");
  const auto line = [&](const std::string& name, const CountBin& bin) {
    out += fmt::format("{:>16} {:>10} {:>9.4f} {:>9.4f}  {:+.4f} +- {:.4f}\n", name, bin.tokens, bin.loss, bin.other,
                       bin.benefit(), bin.error);
  };
  for (const CountBin& bin : comparison.bins) line(range_text(bin), bin);
  line("all", comparison.all);
  return out;
}

std::string comparison_json(const Comparison& comparison) {
  using Json = nlohmann::ordered_json;
  const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); };
  const auto json_of = [&](const CountBin& bin) {
    return Json{{"seen_from", bin.from},
                {"seen_to", bin.to == kNoEnd ? Json(nullptr) : Json(bin.to)},
                {"tokens", bin.tokens},
                {"loss", number(bin.loss)},
                {"other", number(bin.other)},
                {"benefit", number(bin.benefit())},
                {"standard_error", number(bin.error)}};
  };
  Json out = {{"run", comparison.run}, {"other", comparison.other}, {"all", json_of(comparison.all)}};
  out["by_count"] = Json::array();
  for (const CountBin& bin : comparison.bins) out["by_count"].push_back(json_of(bin));
  return out.dump(1) + "\n";
}

}  // namespace egmla
