// Whole runs: resuming bit for bit, surviving kill -9, stopping by signals, refusing what does not fit.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "core/bf16.h"
#include "core/files.h"
#include "data/shards.h"
#include "egmla_command.h"
#include "io/checkpoint.h"
#include "run_folder.h"
#include "train/metrics.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

class Training : public RunFolder {
 protected:
  void SetUp() override {
    RunFolder::SetUp();
    write_shard("train", 4000, 1);
    write_shard("val", 200, 2);
    write_config("config.yaml", R"(  max_steps: 20
  batch_tokens: 128
  micro_batch_size: 4
  optimizer: {lr: 3e-3}
  schedule: {warmup_steps: 4}
  checkpoint: {every: 5, keep_last: 100}
  eval: {every: 10}
  log: {every: 5}
)");
  }

  Outcome train(const std::string& run, const std::string& overrides = "",
                const std::string& prefix = "OMP_NUM_THREADS=2") const {
    return egmla_command(fmt::format("train '{}' run.dir='{}' {}", file("config.yaml"), file(run), overrides), prefix);
  }
};

// Every tensor of both groups of files, and the state.
void expect_equal_checkpoints(const std::string& a, const std::string& b) {
  const CheckpointReader left(a), right(b);
  EXPECT_EQ(left.state(), right.state());
  for (Group group : {Group::model, Group::exp_avg, Group::exp_avg_sq}) {
    ASSERT_EQ(left.paths(group), right.paths(group));
    ASSERT_FALSE(left.paths(group).empty());
    for (const std::string& path : left.paths(group)) {
      std::vector<float> x(static_cast<size_t>(left.shape(group, path).elements())), y = x;
      left.read(group, path, x.data());
      right.read(group, path, y.data());
      EXPECT_EQ(x, y) << path;
    }
  }
}

void expect_equal_losses(const std::string& a, const std::string& b) {
  const auto left = read_metrics(a + "/metrics.jsonl"), right = read_metrics(b + "/metrics.jsonl");
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i) {
    EXPECT_EQ(left[i].step, right[i].step);
    EXPECT_EQ(left[i].loss, right[i].loss) << "step " << left[i].step;
    EXPECT_EQ(left[i].grad_norm, right[i].grad_norm);
    EXPECT_EQ(left[i].lr, right[i].lr);
    EXPECT_EQ(left[i].val_loss, right[i].val_loss);
  }
}

TEST_F(Training, ResumedRunEqualsTheUninterruptedOneBitForBit) {
  ASSERT_EQ(train("whole").code, 0);
  ASSERT_EQ(train("halves", "train.stop_at_step=10").code, 0);
  EXPECT_EQ(list_checkpoints(file("halves/checkpoints")).back().step, 10);
  const Outcome second = train("halves");
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_NE(second.err.find("resuming from"), std::string::npos);
  expect_equal_checkpoints(checkpoint("whole", 20), checkpoint("halves", 20));
  expect_equal_losses(file("whole"), file("halves"));
  const auto rows = read_metrics(file("whole") + "/metrics.jsonl");
  ASSERT_EQ(rows.size(), 20U);
  EXPECT_TRUE(rows[9].val_loss && rows[19].val_loss && !rows[10].val_loss);
  EXPECT_EQ(rows[19].tokens, 20 * 128);
}

TEST_F(Training, Bf16MomentsResumeBitForBit) {
  const std::string narrow = "train.optimizer.state_dtype=bf16";
  ASSERT_EQ(train("whole", narrow).code, 0);
  ASSERT_EQ(train("fp32").code, 0);
  ASSERT_EQ(train("halves", narrow + " train.stop_at_step=10").code, 0);
  const Outcome other = train("halves");
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("train.optimizer.state_dtype"), std::string::npos) << other.err;
  const Outcome outcome = train("halves", narrow);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("resuming from"), std::string::npos);
  expect_equal_checkpoints(checkpoint("whole", 20), checkpoint("halves", 20));
  expect_equal_losses(file("whole"), file("halves"));
  const auto rows = read_metrics(file("whole/metrics.jsonl")), reference = read_metrics(file("fp32/metrics.jsonl"));
  ASSERT_EQ(rows.size(), reference.size());
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_NEAR(rows[i].loss, reference[i].loss, 0.01) << "row " << i;
  const auto on_grid = [&](const std::string& run) {
    const CheckpointReader reader(checkpoint(run, 20));
    bool all = true;
    for (const Group group : {Group::exp_avg, Group::exp_avg_sq}) {
      for (const std::string& path : reader.paths(group)) {
        std::vector<float> values(static_cast<size_t>(reader.shape(group, path).elements()));
        reader.read(group, path, values.data());
        for (const float value : values) all = all && float_from_bf16(bf16_from_float(value)) == value;
      }
    }
    return all;
  };
  EXPECT_TRUE(on_grid("whole"));
  EXPECT_FALSE(on_grid("fp32"));
}

TEST_F(Training, RepeatedRunsAndOtherMicroBatchesAgree) {
  ASSERT_EQ(train("a").code, 0);
  ASSERT_EQ(train("b").code, 0);
  expect_equal_checkpoints(checkpoint("a", 20), checkpoint("b", 20));
  ASSERT_EQ(train("c", "train.micro_batch_size=8").code, 0);
  const auto a = read_metrics(file("a") + "/metrics.jsonl"), c = read_metrics(file("c") + "/metrics.jsonl");
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i].loss, c[i].loss, 1e-4);
}

// Twenty times: start, kill -9 at a random moment; then let it finish.
TEST_F(Training, KilledRunsEndWithTheSameWeights) {
  const std::string more = "train.max_steps=60 train.eval.every=0";
  ASSERT_EQ(train("whole", more).code, 0);
  std::mt19937 random(7);
  int killed = 0;
  for (int attempt = 0; attempt < 200 && killed < 20; ++attempt) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::setenv("OMP_NUM_THREADS", "2", 1);
      ::dup2(::open("/dev/null", O_WRONLY), STDERR_FILENO);
      const std::string run = "run.dir=" + file("killed");
      ::execl(EGMLA_BINARY, EGMLA_BINARY, "train", file("config.yaml").c_str(), run.c_str(), "train.max_steps=60",
              "train.eval.every=0", nullptr);
      ::_exit(127);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 160));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) ++killed;
    if (WIFEXITED(status)) {
      ASSERT_EQ(WEXITSTATUS(status), 0);
      fs::remove_all(file("killed"));  // it had finished: start over
    }
  }
  EXPECT_EQ(killed, 20);
  const Outcome last = train("killed", more);
  ASSERT_EQ(last.code, 0) << last.err;
  expect_equal_checkpoints(checkpoint("whole", 60), checkpoint("killed", 60));
  expect_equal_losses(file("whole"), file("killed"));
}

TEST_F(Training, SignalSavesAndLeaves) {
  const Outcome stopped =
      train("run", "train.max_steps=100000 train.checkpoint.every=0", "timeout -s TERM 1 env OMP_NUM_THREADS=2");
  EXPECT_NE(stopped.err.find("signal 15: saved step"), std::string::npos) << stopped.err;
  const auto files = list_checkpoints(file("run/checkpoints"));
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(CheckpointReader(files[0].path).state().step, files[0].step);
  EXPECT_EQ(read_metrics(file("run/metrics.jsonl")).back().step, files[0].step);
}

TEST_F(Training, DamagedCheckpointIsPassedOver) {
  ASSERT_EQ(train("run", "train.max_steps=10").code, 0);
  std::fstream damaged(checkpoint("run", 10), std::ios::in | std::ios::out | std::ios::binary);
  damaged.seekp(static_cast<std::streamoff>(fs::file_size(checkpoint("run", 10)) / 2));
  damaged.put('x').put('y').put('z');
  damaged.close();
  const Outcome again = train("run", "train.max_steps=10");
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("passed over"), std::string::npos) << again.err;
  EXPECT_NE(again.err.find("step-00000005.h5 (step 5)"), std::string::npos) << again.err;
}

TEST_F(Training, MaxStepsZeroWritesTheInitialWeights) {
  ASSERT_EQ(train("run", "train.max_steps=0").code, 0);
  EXPECT_EQ(CheckpointReader(checkpoint("run", 0)).state().step, 0);
}

TEST_F(Training, InitFromTakesTheWeights) {
  ASSERT_EQ(train("a", "train.max_steps=5").code, 0);
  ASSERT_EQ(train("b", "train.max_steps=0 run.init_from=" + file("a")).code, 0);
  const CheckpointReader a(checkpoint("a", 5)), b(checkpoint("b", 0));
  for (const std::string& path : a.paths(Group::model)) {
    std::vector<float> x(static_cast<size_t>(a.shape(Group::model, path).elements())), y = x;
    a.read(Group::model, path, x.data());
    b.read(Group::model, path, y.data());
    EXPECT_EQ(x, y) << path;
  }
}

TEST_F(Training, NonFiniteGradientsStopOrAreSkipped) {
  const std::string wild = "train.optimizer.lr=1e36 train.schedule.warmup_steps=0 train.grad_clip=0";
  const Outcome stopped = train("stop", wild);
  EXPECT_EQ(stopped.code, 1);
  EXPECT_NE(stopped.last_line().find("not finite"), std::string::npos) << stopped.err;
  EXPECT_NE(stopped.last_line().find("train_000000.bin: token"), std::string::npos) << stopped.err;
  EXPECT_NE(stopped.last_line().find(".weight (largest gradient"), std::string::npos) << stopped.err;
  const Outcome skipped = train("skip", wild + " train.skip_nonfinite=true");
  EXPECT_EQ(skipped.code, 0) << skipped.err;
  EXPECT_GT(CheckpointReader(checkpoint("skip", 20)).state().skipped_steps, 0);
}

TEST_F(Training, ExhaustedMemoryNamesTheOpAndWhatFits) {
  const Outcome outcome = train("run", "run.memory_limit_gib=0.0009 train.micro_batch_size=8");
  EXPECT_EQ(outcome.code, 1);
  const std::string line = outcome.last_line();
  for (const char* part : {": out of memory: ", " bytes asked on cpu with 0.001 GiB; held: ", "activations ",
                           "optimizer ", "; train.micro_batch_size=4 fits"})
    EXPECT_NE(line.find(part), std::string::npos) << part << " in " << line;
  EXPECT_EQ(line.find("error: out of memory"), std::string::npos) << "no op in " << line;
}

TEST_F(Training, DifferentConfigurationIsRefusedWithItsKeys) {
  ASSERT_EQ(train("run", "train.max_steps=5").code, 0);
  const Outcome other = train("run", "model.hidden_size=64 train.optimizer.lr=1e-3");
  EXPECT_EQ(other.code, 2);
  for (const char* key : {"model.hidden_size: 32 -> 64", "train.optimizer.lr"})
    EXPECT_NE(other.last_line().find(key), std::string::npos) << other.err;
  EXPECT_EQ(train("run", "train.max_steps=8 train.log.every=1 train.micro_batch_size=2").code, 0);
}

TEST_F(Training, FullDiskIsOneClearLine) {
  // 64 KiB a file: enough for the log, not for a checkpoint. HDF5 keeps what it could not flush, which a leak sanitizer
  // would count against us.
  const Outcome full = train("run", "", "ulimit -f 64; ASAN_OPTIONS=detect_leaks=0");
  EXPECT_EQ(full.code, 1);
  EXPECT_NE(full.last_line().find("checkpoint not written"), std::string::npos) << full.err;
  EXPECT_EQ(train("run").code, 0);
}

TEST_F(Training, WrongInputIsRefusedWithExitCode2) {
  const auto expect_refused = [&](const std::string& overrides, const std::vector<std::string>& parts) {
    const Outcome outcome = train("refused", overrides);
    EXPECT_EQ(outcome.code, 2) << overrides << "\n" << outcome.err;
    for (const std::string& part : parts)
      EXPECT_NE(outcome.last_line().find(part), std::string::npos) << part << " in: " << outcome.err;
  };
  expect_refused("model.hiden_size=3", {"model.hiden_size", "model.hidden_size"});
  expect_refused("train.max_steps=many", {"train.max_steps", "many"});
  expect_refused("data.train=" + file("absent_*.bin"), {"absent_*.bin"});
  expect_refused("data.sequence_length=32", {"data.sequence_length", "32", "max_position_embeddings"});
  fs::copy(file("train_000000.bin"), file("short.bin"));
  fs::resize_file(file("short.bin"), fs::file_size(file("short.bin")) - 100);
  expect_refused("data.train=" + file("short.bin"), {"short.bin", "4000"});
  expect_refused("model.vocab_size=40", {"train_000000.bin", "ends at 39"});
  write_file(file("tokenizer.json"), "{}");
  expect_refused("data.tokenizer=" + file("tokenizer.json"), {"tokenizer.json"});
  // Shards that another tokenizer made, as their meta.json says.
  write_file(file("text.txt"), "In the beginning God created the heaven and the earth.");
  for (const char* const size : {"258", "260"})
    ASSERT_EQ(egmla_command(fmt::format("tokenizer train '{}' --vocab-size {} --out '{}'", file("text.txt"), size,
                                        file(size) + ".json"))
                  .code,
              0);
  ASSERT_EQ(egmla_command(fmt::format("data prepare '{}' --tokenizer '{}' --out '{}'", file("text.txt"),
                                      file("258.json"), file("prepared")))
                .code,
            0);
  const std::string prepared =
      fmt::format("data.train='{}' data.val=[] model.vocab_size=300 data.tokenizer=", file("prepared/train_*.bin"));
  expect_refused(prepared + file("260.json"),
                 {"made with another tokenizer than", "260.json", "prepared/tokenizer.json"});
  EXPECT_EQ(train("accepted", prepared + file("258.json") + " train.max_steps=0").code, 0);
  EXPECT_EQ(egmla_command("eval " + file("nowhere")).code, 2);
  write_file(file("broken.h5"), "not a checkpoint");
  const Outcome broken = egmla_command("eval " + file("broken.h5"));
  EXPECT_EQ(broken.code, 2);
  EXPECT_NE(broken.last_line().find("broken.h5"), std::string::npos);
}

TEST_F(Training, EvalReportsWhatTrainingMeasured) {
  ASSERT_EQ(train("run").code, 0);
  const Outcome outcome =
      egmla_command(fmt::format("eval '{}' --per-token '{}'", file("run"), file("losses.txt")), "OMP_NUM_THREADS=2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::ifstream in(file("losses.txt"));
  double sum = 0, value = 0;
  int64_t count = 0;
  while (in >> value) {
    sum += value;
    ++count;
  }
  EXPECT_EQ(count, 199);  // every token but the first
  EXPECT_NEAR(sum / 199, *read_metrics(file("run/metrics.jsonl")).back().val_loss, 1e-6);
}

}  // namespace
}  // namespace egmla::test
