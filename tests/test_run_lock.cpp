// A run directory belongs to one process or job at a time; the lock names its owner and dies with it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <thread>

#include "core/check.h"
#include "core/files.h"
#include "core/owner_lock.h"
#include "egmla_command.h"
#include "run_folder.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

std::string host_name() {
  std::array<char, 128> host{};
  return ::gethostname(host.data(), host.size() - 1) == 0 ? host.data() : "?";
}

class RunLock : public RunFolder {
 protected:
  void SetUp() override {
    RunFolder::SetUp();
    write_shard("train", 600, 1);
    write_shard("val", 100, 2);
    write_config("config.yaml", R"(  max_steps: 1000000
  batch_tokens: 32
  optimizer: {lr: 1e-4}
  checkpoint: {every: 0}
  eval: {every: 0}
)");
  }
  void TearDown() override {
    if (child_ > 0) end();
    RunFolder::TearDown();
  }

  // A process group that trains until it is ended; returns once it has made steps.
  void start(const std::string& launcher) {
    const std::string command =
        fmt::format("exec {} '{}' train '{}' run.dir='{}'", launcher, EGMLA_BINARY, file("config.yaml"), file("run"));
    child_ = ::fork();
    if (child_ == 0) {
      ::setpgid(0, 0);
      ::dup2(::open(file("out").c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0644), STDERR_FILENO);
      ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      ::_exit(127);
    }
    for (int wait = 0;
         wait < 600 && !(fs::exists(file("run/metrics.jsonl")) && fs::file_size(file("run/metrics.jsonl")) > 0); ++wait)
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ASSERT_TRUE(fs::exists(file("run/metrics.jsonl"))) << read_file(file("out"));
  }
  void end() {
    ::kill(-child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    child_ = -1;
  }
  Outcome second() const {
    return egmla_command(fmt::format("train '{}' run.dir='{}' train.stop_at_step=1", file("config.yaml"), file("run")),
                         "OMP_NUM_THREADS=1");
  }

  pid_t child_ = -1;
};

TEST_F(RunLock, ASecondProcessIsRefusedUntilTheFirstIsGone) {
  ASSERT_NO_FATAL_FAILURE(start("env OMP_NUM_THREADS=1"));
  const std::string expected =
      fmt::format("error: {}: process {} on {} is training here; wait for it or choose another run.dir", file("run"),
                  child_, host_name());
  for (const int signal : {SIGSTOP, SIGCONT}) {
    ::kill(child_, signal);
    const Outcome refused = second();
    EXPECT_EQ(refused.code, 2);
    EXPECT_EQ(refused.last_line(), expected);
  }
  end();
  const Outcome allowed = second();
  EXPECT_EQ(allowed.code, 0) << allowed.err;
}

#ifdef EGMLA_WITH_MPI
TEST_F(RunLock, TheRootOfAJobHoldsIt) {
  ASSERT_NO_FATAL_FAILURE(
      start("env OMP_NUM_THREADS=1 OMPI_MCA_btl_vader_single_copy_mechanism=none mpirun --allow-run-as-root "
            "--oversubscribe --bind-to none -n 2"));
  const Outcome refused = second();
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.last_line().find(fmt::format(" on {} is training here; ", host_name())), std::string::npos)
      << refused.err;
}
#endif

TEST_F(RunLock, AnAbsentNameIsNoReasonToFail) {
  const std::string path = file("lock");
  const auto refusal = [&] {
    try {
      const OwnerLock second(path, "DIR", "at work", "wait");
      return std::string("none");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      return std::string(error.what());
    }
  };
  {
    const OwnerLock first(path, "DIR", "at work", "wait");
    EXPECT_EQ(refusal(), fmt::format("DIR: process {} on {} is at work here; wait", ::getpid(), host_name()));
    fs::resize_file(path, 0);
    EXPECT_EQ(refusal(), "DIR: another process is at work here; wait");
    first.remove();
    EXPECT_EQ(refusal(), "none");  // a new file, a new lock
  }
  EXPECT_EQ(refusal(), "none");
}

}  // namespace
}  // namespace egmla::test
