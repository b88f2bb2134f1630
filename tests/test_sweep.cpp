// Sweeps: what a file expands to, what is held equal, and whole sweeps that fail, stop and go on.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/check.h"
#include "core/files.h"
#include "egmla_command.h"
#include "lab/report_data.h"
#include "lab/sweep_plan.h"
#include "run_folder.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

class Sweep : public RunFolder {
 protected:
  void SetUp() override {
    RunFolder::SetUp();
    write_config("base.yaml", R"(  max_steps: 10
  batch_tokens: 128
  schedule: {warmup_steps: 2}
  checkpoint: {every: 0}
  eval: {every: 5}
)");
  }

  bool exists(const std::string& name) const { return fs::exists(file(name)); }

  void write_data() const {
    write_shard("train", 4000, 1);
    write_shard("val", 200, 1);
  }

  std::string write_sweep(const std::string& body) const {
    write_file(file("sweep.yaml"), "name: s\ndir: " + file("runs") + "\nbase: base.yaml\n" + body);
    return file("sweep.yaml");
  }

  SweepPlan plan(const std::string& body) const { return plan_sweep(write_sweep(body)); }

  std::string refusal(const std::string& body) const {
    try {
      plan(body);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      return error.what();
    }
    return "";
  }

  Outcome sweep(const std::string& options = "") const {
    return egmla_command(fmt::format("sweep '{}' {}", file("sweep.yaml"), options), "OMP_NUM_THREADS=2");
  }

  // The state of each run by its name.
  std::map<std::string, std::string> states() const {
    std::map<std::string, std::string> out;
    const auto record = nlohmann::json::parse(read_file(file("runs/sweep.json")));
    for (const auto& run : record["runs"]) out[run["name"]] = run["state"];
    return out;
  }
};

std::vector<std::string> names_of(const SweepPlan& plan) {
  std::vector<std::string> names;
  for (const PlannedRun& run : plan.runs) names.push_back(run.name);
  return names;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_F(Sweep, ListsMultiplyGroupsMoveTogetherAndRulesSkip) {
  const SweepPlan found = plan(R"(
set: {train.optimizer.lr: 5e-4}
grid:
  attention:
    mha: {model.attention.type: mha}
    egmla: {model.attention.gate.offset: 1, model.attention.gate.init_std: 0.5}
  train.max_steps: [4, 8]
seeds: [1, 2]
skip:
  - {attention: mha, train.max_steps: 4}
)");
  EXPECT_EQ(names_of(found), (std::vector<std::string>{"mha-max_steps_8-seed_1", "mha-max_steps_8-seed_2",
                                                       "egmla-max_steps_4-seed_1", "egmla-max_steps_4-seed_2",
                                                       "egmla-max_steps_8-seed_1", "egmla-max_steps_8-seed_2"}));
  EXPECT_EQ(found.skipped, 1);
  const Config& mha = found.runs[1].config;
  EXPECT_EQ(mha.model.attention.type, AttentionType::mha);
  EXPECT_EQ(mha.run.seed, 2);
  EXPECT_EQ(mha.run.name, "mha-max_steps_8-seed_2");
  EXPECT_EQ(mha.run.dir, file("runs/mha-max_steps_8-seed_2"));
  EXPECT_EQ(mha.train.optimizer.lr, 5e-4);
  const Config& gated = found.runs[2].config;
  EXPECT_EQ(gated.train.max_steps, 4);
  EXPECT_EQ(gated.model.attention.gate.offset, 1);
  EXPECT_EQ(gated.model.attention.gate.init_std, 0.5);
}

TEST_F(Sweep, HoldsParametersTokensAndFlopsEqual) {
  const std::string grid = R"(
grid:
  attention:
    mla: {model.attention.type: mla}
    egmla: {model.attention.gate.embed_dim: 16, train.batch_tokens: 256}
)";
  const auto held = [&](const std::string& quantity) {
    return plan(grid + "hold: {equal: " + quantity + ", reference: {attention: mla}, multiple_of: 1}\n");
  };
  const SweepPlan free = plan(grid), parameters = held("parameters"), total = held("total_parameters"),
                  flops = held("flops"), tokens = held("tokens");
  const int64_t width = 3 * 32 * 2;  // parameters of one feature of all feed-forward layers
  EXPECT_GT(free.runs[1].size.without_tables() - free.runs[0].size.without_tables(), width);
  EXPECT_LE(std::abs(parameters.runs[1].size.without_tables() - free.runs[0].size.without_tables()), width / 2);
  EXPECT_LE(std::abs(total.runs[1].size.parameters - free.runs[0].size.parameters), width / 2);
  EXPECT_LE(std::abs(flops.runs[1].size.flops_per_token - free.runs[0].size.flops_per_token), 6.0 * width / 2);
  EXPECT_GT(free.runs[1].size.flops_per_token - free.runs[0].size.flops_per_token, 6.0 * width);
  EXPECT_EQ(free.runs[1].tokens(), 2560);
  EXPECT_EQ(tokens.runs[1].tokens(), 1280);
  EXPECT_EQ(tokens.runs[1].config.train.max_steps, 5);
  ASSERT_EQ(parameters.notes.size(), 1U);
  EXPECT_TRUE(has(parameters.notes[0], "egmla: model.intermediate_size=")) << parameters.notes[0];
  EXPECT_TRUE(has(refusal(grid + "hold: {equal: [flops, parameters]}\n"), "one width cannot hold 2 quantities"));
}

TEST_F(Sweep, RefusesWhatCannotBeMeant) {
  EXPECT_TRUE(has(refusal("grid: {model.hiden_size: [1]}\n"), "sweep.yaml:4: unknown key 'model.hiden_size'"));
  EXPECT_TRUE(has(refusal("grids: {}\n"), "unknown key 'grids'"));
  EXPECT_TRUE(has(refusal("grid: {run.dir: [a]}\n"), "run.dir is the sweep's own"));
  EXPECT_TRUE(has(refusal("grid: {model.hidden_size: [32, 32]}\n"), "'32' is given twice"));
  const std::string grid = "grid: {model.hidden_size: [32, 64]}\n";
  EXPECT_TRUE(has(refusal(grid + "skip: [{model.hidden_size: 48}]\n"), "'48' is no value of the axis"));
  EXPECT_TRUE(has(refusal(grid + "skip: [{width: 32}]\n"), "'width' is no axis"));
  EXPECT_TRUE(has(refusal(grid + "skip: [{model.hidden_size: [32, 64]}]\n"), "every combination is skipped"));
  EXPECT_TRUE(has(refusal(grid + "seeds: [one]\n"), "seeds: found 'one'"));
  EXPECT_TRUE(has(refusal("grid: {train.max_steps: [few]}\n"), "train.max_steps"));
}

TEST_F(Sweep, ShippedSweepsCanBePlanned) {
  int64_t sweeps = 0;
  for (const auto& item : fs::directory_iterator(EGMLA_SOURCE_DIR "/configs/sweeps")) {
    if (item.path().filename().string().starts_with("base_")) continue;
    const SweepPlan found = plan_sweep(item.path().string());
    EXPECT_GE(found.runs.size(), 4U) << item.path();
    EXPECT_EQ(found.dir, "runs/sweeps/" + item.path().stem().string());
    ++sweeps;
  }
  EXPECT_GE(sweeps, 10);
  EXPECT_GE(plan_sweep(EGMLA_SOURCE_DIR "/configs/sweeps/tiny.yaml").runs.size(), 8U);
}

TEST_F(Sweep, DryRunNeedsNoDataAndLeavesNothing) {
  write_sweep("grid: {model.attention.kv_lora_rank: [8, 16]}\nseeds: [1, 2]\n");
  const Outcome outcome = sweep("--dry-run");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part : {"kv_lora_rank_8-seed_2", "4 runs in ", "5.12k tokens", " MB of disk"})
    EXPECT_TRUE(has(outcome.out, part)) << part << " in " << outcome.out;
  EXPECT_FALSE(exists("runs"));
}

TEST_F(Sweep, FailedRunsAreRecordedAndTheRestGoesOn) {
  write_data();
  write_sweep(R"(
grid:
  case:
    wild: {train.optimizer.lr: 1e36, train.schedule.warmup_steps: 0, train.grad_clip: 0}
    mha: {model.attention.type: mha}
    egmla: {}
seeds: [1, 2]
)");
  const Outcome outcome = sweep("--jobs 2");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_TRUE(has(outcome.last_line(), "2 of 6 runs failed, first wild-seed_1")) << outcome.err;
  EXPECT_TRUE(has(outcome.last_line(), "not finite")) << outcome.err;
  const auto found = states();
  EXPECT_EQ(found.at("wild-seed_2"), "failed");
  for (const char* name : {"mha-seed_1", "mha-seed_2", "egmla-seed_1", "egmla-seed_2"})
    EXPECT_EQ(found.at(name), "finished") << name;

  const auto table = nlohmann::json::parse(read_file(file("runs/table.json")))["settings"];
  ASSERT_EQ(table.size(), 3U);
  EXPECT_EQ(table[0]["finished"], 0);
  EXPECT_EQ(table[2]["values"]["case"], "egmla");
  const auto& loss = table[2]["val_loss"];
  ASSERT_EQ(loss["values"].size(), 2U);
  const double a = loss["values"][0], b = loss["values"][1];
  EXPECT_NEAR(loss["mean"].get<double>(), (a + b) / 2, 1e-12);
  EXPECT_NEAR(loss["standard_deviation"].get<double>(), std::abs(a - b) / std::sqrt(2.0), 1e-12);
  EXPECT_NE(a, b);
  EXPECT_EQ(load_runs({file("runs/egmla-seed_2")})[0].final_val_loss(), std::optional(b));
  EXPECT_TRUE(has(read_file(file("runs/table.csv")), "\nmha,2/2,"));
  EXPECT_TRUE(has(read_file(file("runs/table.md")), "| egmla | 2/2 |"));

  const Outcome report = egmla_command(fmt::format("report '{0}'/* --out '{0}/report.html'", file("runs")));
  EXPECT_EQ(report.code, 0) << report.err;
  EXPECT_TRUE(has(read_file(file("runs/report.html")), "Best of 6 runs"));
}

TEST_F(Sweep, StartedAgainItKeepsWhatIsFinished) {
  write_data();
  write_sweep("grid: {model.attention.type: [mha, mla]}\n");
  ASSERT_EQ(sweep().code, 0);
  const auto written = fs::last_write_time(file("runs/type_mha/metrics.jsonl"));
  fs::remove_all(file("runs/type_mla"));
  const Outcome again = sweep();
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_TRUE(has(again.err, "2 runs, 1 of them finished")) << again.err;
  EXPECT_EQ(fs::last_write_time(file("runs/type_mha/metrics.jsonl")), written);
  EXPECT_TRUE(exists("runs/type_mla/checkpoints/step-00000010.h5"));
  write_sweep("set: {train.optimizer.lr: 1e-3}\ngrid: {model.attention.type: [mha, mla]}\n");
  const Outcome other = sweep();
  EXPECT_EQ(other.code, 2);
  EXPECT_TRUE(has(other.last_line(), "type_mha: was made under another configuration")) << other.err;
  EXPECT_TRUE(has(other.last_line(), "train.optimizer.lr: 0.0006 -> 0.001")) << other.err;
}

TEST_F(Sweep, WhatIsRecordedAsFinishedNeedsNoCheckpoint) {
  write_data();
  write_sweep("grid: {model.attention.type: [mha, mla]}\n");
  ASSERT_EQ(sweep().code, 0);
  for (const char* run : {"type_mha", "type_mla"}) fs::remove_all(file(fmt::format("runs/{}/checkpoints", run)));
  const Outcome again = sweep();
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_TRUE(has(again.err, "2 runs, 2 of them finished")) << again.err;
  write_file(file("runs/sweep.json"), "{}");
  const Outcome damaged = sweep();
  EXPECT_EQ(damaged.code, 2);
  EXPECT_TRUE(has(damaged.last_line(), "sweep.json: damaged")) << damaged.err;
}

TEST_F(Sweep, SeveralSweepsShareTheirPlacesAndBeginWithFirstSeeds) {
  write_data();
  write_sweep("grid: {model.attention.type: [mha, mla]}\nseeds: [1, 2]\n");
  write_file(file("second.yaml"), "dir: " + file("other") + "\nbase: base.yaml\n");
  const std::string files = fmt::format("sweep '{}' '{}' --jobs 1", file("sweep.yaml"), file("second.yaml"));
  const Outcome outcome = egmla_command(files, "OMP_NUM_THREADS=2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::vector<size_t> places;
  for (const char* run :
       {"s type_mha-seed_1:", "s type_mla-seed_1:", "s type_mha-seed_2:", "s type_mla-seed_2:", "second second:"})
    places.push_back(outcome.err.find(run));
  EXPECT_TRUE(std::is_sorted(places.begin(), places.end())) << outcome.err;
  EXPECT_NE(places.back(), std::string::npos) << outcome.err;
  EXPECT_TRUE(has(outcome.out, "## s\n\n| model.attention.type |")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, "## second\n\n| finished |")) << outcome.out;
  EXPECT_TRUE(exists("other/second/checkpoints/step-00000010.h5"));
}

TEST_F(Sweep, TheSameTrainingOfTwoSweepsIsDoneOnce) {
  write_data();
  write_sweep("grid: {model.attention.type: [mha, mla]}\n");
  write_file(file("second.yaml"), "dir: " + file("other") +
                                      "\nbase: base.yaml\ngrid: {case: {a: "
                                      "{model.attention.type: mla}, b: {train.optimizer.lr: 1e-3}}}\n");
  const std::string files = fmt::format("sweep '{}' '{}'", file("sweep.yaml"), file("second.yaml"));
  const Outcome outcome = egmla_command(files, "OMP_NUM_THREADS=2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(has(outcome.err, "second a: the same training as " + file("runs/type_mla"))) << outcome.err;
  EXPECT_EQ(read_file(file("other/a/metrics.jsonl")), read_file(file("runs/type_mla/metrics.jsonl")));
  EXPECT_EQ(load_runs({file("other/a")})[0].name, "a");
  EXPECT_TRUE(exists("other/a/checkpoints/step-00000010.h5"));
  EXPECT_FALSE(exists("other/a/output.txt"));
  EXPECT_TRUE(exists("other/b/output.txt"));
  EXPECT_EQ(egmla_command(files).code, 0);
}

TEST_F(Sweep, TheTimeLimitLeavesTheRestForTheNextStart) {
  write_data();
  write_sweep("grid: {model.attention.type: [mha, mla, egmla]}\n");
  const Outcome outcome = sweep("--time-limit 0.001");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_TRUE(has(outcome.last_line(), "the time limit of 0.001 s left 3 of 3 runs to do")) << outcome.err;
  EXPECT_EQ(states().at("type_egmla"), "waiting");
  const Outcome again = sweep("--time-limit 1000");
  EXPECT_EQ(again.code, 0) << again.err;
}

class StoppedSweep : public Sweep {
 protected:
  // Starts a sweep of two long runs at once, and sends it a signal once both train.
  int stop_with(int signal) {
    write_data();
    write_sweep("set: {train.max_steps: 1000000}\ngrid: {model.attention.type: [mha, mla]}\n");
    const pid_t child = ::fork();
    if (child == 0) {
      ::setenv("OMP_NUM_THREADS", "2", 1);
      ::dup2(::open("/dev/null", O_WRONLY), STDERR_FILENO);
      ::execl(EGMLA_BINARY, EGMLA_BINARY, "sweep", file("sweep.yaml").c_str(), "--jobs", "2", nullptr);
      ::_exit(127);
    }
    for (int i = 0; i < 600 && !(trains("type_mha") && trains("type_mla")); ++i) wait_a_little();
    EXPECT_TRUE(trains("type_mha") && trains("type_mla"));
    ::kill(child, signal);
    int status = 0;
    ::waitpid(child, &status, 0);
    return status;
  }

  bool trains(const std::string& run) const {
    const std::string metrics = file("runs/" + run + "/metrics.jsonl");
    return fs::exists(metrics) && fs::file_size(metrics) > 0;
  }
  // A run's lock is free and its checkpoint is written once its process has gone.
  bool saved(const std::string& run) const {
    const std::string checkpoints = file("runs/" + run + "/checkpoints");
    if (!fs::exists(checkpoints)) return false;
    const auto files = fs::directory_iterator(checkpoints);
    return std::any_of(begin(files), end(files), [](const auto& entry) { return entry.path().extension() == ".h5"; });
  }
  static void wait_a_little() { std::this_thread::sleep_for(std::chrono::milliseconds(50)); }
};

TEST_F(StoppedSweep, SigtermLetsRunsSave) {
  const int status = stop_with(SIGTERM);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_TRUE(saved("type_mha") && saved("type_mla"));
  EXPECT_EQ(states().at("type_mla"), "waiting");
}

TEST_F(StoppedSweep, KillLeavesNoOrphans) {
  const int status = stop_with(SIGKILL);
  EXPECT_TRUE(WIFSIGNALED(status));
  for (int i = 0; i < 600 && !(saved("type_mha") && saved("type_mla")); ++i) wait_a_little();
  EXPECT_TRUE(saved("type_mha") && saved("type_mla"));
}

}  // namespace
}  // namespace egmla::test
