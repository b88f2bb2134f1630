// egmla bench: what this machine reaches on the operations that decide a step's time.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "infer/device.h"
#include "lab/bench_attention.h"
#include "lab/bench_decode.h"
#include "lab/bench_ops.h"
#include "lab/bench_train.h"

namespace egmla {
namespace {

struct AttentionOptions {
  std::vector<std::string> rows = default_attention_shapes();
  bool json = false;
};

void add_attention(CLI::App& bench) {
  const auto options = std::make_shared<AttentionOptions>();
  CLI::App* command = bench.add_subcommand("attention", "Forward and backward of causal attention in bf16");
  command->add_flag("--json", options->json, "print JSON");
  command->add_option(
      "--rows", options->rows,
      "shapes B,H,T,QK,V; QK is a width, or DK+DR where all heads share DR of it (default: six shapes of the "
      "124m and 1b models)");
  command->footer("Example: egmla bench attention --rows 16,12,1024,64+32,64 8,16,2048,128,128 --json");
  command->callback([options] {
    std::vector<AttentionShape> shapes;
    for (const std::string& row : options->rows) shapes.push_back(parse_attention_shape(row));
    const std::unique_ptr<Context> device = bench_device();
    const std::vector<AttentionTiming> timings = bench_attention(*device, shapes);
    fmt::print("{}", options->json ? attention_json(device->name(), timings) : attention_table(timings));
  });
}

struct TrainBenchOptions {
  std::string config;
  std::vector<std::string> overrides;
  int64_t warmup = 5, steps = 20;
  bool json = false, profile = false, no_floor = false;
};

void add_train(CLI::App& bench) {
  const auto options = std::make_shared<TrainBenchOptions>();
  CLI::App* command =
      bench.add_subcommand("train", "A whole training step on random tokens, beside its floor; opens no data");
  command->add_option("CONFIG", options->config, "configuration (YAML)")->required();
  command->add_option("OVERRIDES", options->overrides, "for example train.micro_batch_size=8")->type_name("KEY=VALUE");
  command->add_option("--steps", options->steps, "timed steps")->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--warmup", options->warmup, "steps before")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--profile", options->profile, "also print time by kernel");
  command->add_flag("--json", options->json, "print JSON");
  command->add_flag("--no-floor", options->no_floor, "leave out the floor, which takes longer than the steps");
  command->footer(
      "Examples:\n"
      "  egmla bench train configs/bench/124m_egmla.yaml --json\n"
      "  mpirun -n 2 egmla bench train configs/bench/124m_egmla.yaml parallel.zero_stage=1\n"
      "Under mpirun each process has a batch of its own, of train.batch_tokens.");
  command->callback([options] {
    const Config config = load_config(options->config, options->overrides);
    const TrainTiming timing =
        bench_train(config, options->warmup, options->steps, options->profile, !options->no_floor);
    if (!timing.is_root) return;
    fmt::print("{}", options->json ? train_timing_json(config, timing) : train_timing_text(timing));
  });
}

struct OpBenchOptions {
  std::vector<std::string> sizes;
  DeviceChoice device = DeviceChoice::automatic;
  bool json = false;
};

void add_ops(CLI::App& bench) {
  static const std::map<std::string, DeviceChoice> kDevices = {
      {"auto", DeviceChoice::automatic}, {"cpu", DeviceChoice::cpu}, {"cuda", DeviceChoice::cuda}};
  const auto options = std::make_shared<OpBenchOptions>();
  CLI::App* command = bench.add_subcommand("ops", "Kernels bound by memory, each alone, against the rate of a copy");
  command->add_option("--sizes", options->sizes, "124m, 1b, small (default: 124m 1b on a GPU, small on the CPU)");
  command->add_option("--device", options->device, "auto, cpu or cuda")
      ->transform(CLI::CheckedTransformer(kDevices))
      ->type_name("DEVICE");
  command->add_flag("--json", options->json, "print JSON");
  command->footer("Example: egmla bench ops --sizes 124m --json");
  command->callback([options] {
    std::vector<OpSizes> sizes;
    for (const std::string& name : options->sizes) sizes.push_back(op_sizes(name));
    const std::unique_ptr<Context> context = open_device(options->device);
    if (sizes.empty() && context->is_cpu()) sizes = {op_sizes("small")};
    if (sizes.empty()) sizes = {op_sizes("124m"), op_sizes("1b")};
    const OpReport report = bench_ops(*context, compute_dtype(Precision::automatic, *context), sizes);
    fmt::print("{}", options->json ? op_report_json(report) : op_report_text(report));
  });
}

struct DecodeCommandOptions {
  std::string config;
  std::vector<std::string> overrides;
  DecodeBenchOptions bench;
  bool json = false;
};

void add_decode(CLI::App& bench) {
  const auto options = std::make_shared<DecodeCommandOptions>();
  CLI::App* command = bench.add_subcommand("decode", "Decoding with random weights, beside its floor; opens no data");
  command->add_option("CONFIG", options->config, "configuration (YAML)")->required();
  command
      ->add_option("OVERRIDES", options->overrides, "for example model.attention.kv_lora_rank=64 run.fold_gate=never")
      ->type_name("KEY=VALUE");
  command->add_option("--batch", options->bench.batches, "sequences decoded at once")
      ->check(CLI::PositiveNumber)
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  command->add_option("--context", options->bench.contexts, "tokens each sequence holds")
      ->check(CLI::PositiveNumber)
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  command->add_option("--steps", options->bench.steps, "timed steps")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--largest", options->bench.largest, "also the largest batch that fits at the longest context");
  command->add_flag("--profile", options->bench.profile, "also time by kernel, each kind repeated alone");
  command->add_option("--gb-per-s", options->bench.gb_per_s, "bandwidth of the floor; 0: what a copy reaches here")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--tflops", options->bench.tflops, "bf16 TFLOP/s of the floor on a GPU")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--json", options->json, "print JSON");
  command->footer("Example: egmla bench decode configs/bench/1b_egmla.yaml --batch 1,32 --context 1024,8192 --largest");
  command->callback([options] {
    const DecodeReport report = bench_decode(load_config(options->config, options->overrides), options->bench);
    fmt::print("{}", options->json ? decode_report_json(report) : decode_report_text(report));
  });
}

}  // namespace

void add_bench_command(CLI::App& app) {
  CLI::App* bench =
      app.add_subcommand("bench", "Speed of this machine on training steps, decoding, attention and single kernels");
  bench->require_subcommand(1);
  bench->footer("Example: egmla bench train configs/quickstart.yaml");
  add_train(*bench);
  add_decode(*bench);
  add_attention(*bench);
  add_ops(*bench);
}

}  // namespace egmla
