// egmla bench: what this machine reaches on the operations that decide a step's time.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "lab/bench.h"

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
  command->add_option("--rows", options->rows,
                      "shapes B,H,T,QK,V; QK is a width, or DK+DR where all heads share DR of it (default: the shapes "
                      "of configs/bench)");
  command->footer("Example: egmla bench attention --rows 16,12,1024,64+32,64 8,16,2048,128,128 --json");
  command->callback([options] {
    std::vector<AttentionShape> shapes;
    for (const std::string& row : options->rows) shapes.push_back(parse_attention_shape(row));
    const std::unique_ptr<Context> device = bench_device();
    const std::vector<AttentionTiming> timings = bench_attention(*device, shapes);
    fmt::print("{}", options->json ? attention_json(device->name(), timings) : attention_table(timings));
  });
}

}  // namespace

void add_bench_command(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Speed of this machine on attention");
  bench->require_subcommand(1);
  bench->footer("Example: egmla bench attention");
  add_attention(*bench);
}

}  // namespace egmla
