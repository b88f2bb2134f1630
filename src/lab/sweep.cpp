#include "lab/sweep.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/check.h"
#include "core/files.h"
#include "lab/sweep_plan.h"
#include "lab/sweep_process.h"
#include "lab/sweep_progress.h"
#include "lab/sweep_table.h"
#include "train/progress.h"
#include "train/signals.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPollInterval{50};

// The last line a process wrote, without the head of an error.
std::string last_line(const std::string& file) {
  std::string text = read_file(file);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  text = text.substr(text.rfind('\n') + 1);  // npos + 1 is 0
  return text.starts_with("error: ") ? text.substr(7) : text;
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// The GPUs' names as the driver takes them, in the order of CUDA_VISIBLE_DEVICES where that is set.
std::vector<std::string> gpu_names(int count) {
  std::vector<std::string> names;
  std::string given = variable("CUDA_VISIBLE_DEVICES");
  for (int i = 0; i < count; ++i) {
    const size_t comma = given.find(',');
    names.push_back(given.empty() ? std::to_string(i) : given.substr(0, comma));
    given = comma == std::string::npos ? "" : given.substr(comma + 1);
  }
  return names;
}

// What one place of a sweep adds to its runs' environment: a GPU of their own, or their share of the CPU's threads.
std::vector<std::vector<std::string>> places_for(const SweepPlan& plan, int jobs) {
  const int gpus = gpus_for(plan);
  check_usage(gpus == 0 || jobs <= gpus, "--jobs {}: found {} GPU{}; expected at most one run for each", jobs, gpus,
              gpus == 1 ? "" : "s");
  std::vector<std::vector<std::string>> places;
  if (gpus > 0) {
    const auto names = gpu_names(gpus);
    for (int i = 0; i < jobs; ++i) places.push_back({"CUDA_VISIBLE_DEVICES=" + names[static_cast<size_t>(i)]});
    return places;
  }
  if (jobs == 1) return {{}};
  const int given = std::atoi(variable("OMP_NUM_THREADS").c_str());
  const int threads = given > 0 ? given : static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 0; i < jobs; ++i) {
    places.push_back({fmt::format("OMP_NUM_THREADS={}", std::max(1, threads / jobs)), "OMP_WAIT_POLICY=passive"});
  }
  return places;
}

// One sweep at a time in a directory.
class SweepLock {
 public:
  explicit SweepLock(const std::string& dir) {
    std::error_code error;
    fs::create_directories(dir, error);
    check_usage(!error, "{}: cannot be made: {}; give the sweep another dir", dir, error.message());
    file_ = ::open((dir + "/.lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    check_usage(file_ >= 0, "{}: cannot be written to: {}", dir, system_error_text());
    check_usage(::flock(file_, LOCK_EX | LOCK_NB) == 0, "{}: another sweep is at work here; wait for it", dir);
  }
  SweepLock(const SweepLock&) = delete;
  SweepLock& operator=(const SweepLock&) = delete;
  ~SweepLock() { ::close(file_); }

 private:
  int file_;
};

struct ActiveRun {
  size_t index, place;
  Clock::time_point start;
  std::unique_ptr<ChildProcess> process;
};

class Sweep {
 public:
  Sweep(const std::string& file, const SweepOptions& options)
      : plan_(plan_sweep(file)), lock_(plan_.dir), places_(places_for(plan_, options.jobs)) {
    for (const PlannedRun& run : plan_.runs) statuses_.push_back(status_of(run));
  }

  std::string run() {
    spdlog::info("{}: {} runs, {} of them finished, in {}", plan_.name, plan_.runs.size(), count(RunState::finished),
                 plan_.dir);
    for (const std::string& note : plan_.notes) spdlog::info("{}", note);
    const int signal = train_all();
    record();
    check(signal == 0, "sweep: signal {}: stopped with {} of {} runs finished; run the same command to go on", signal,
          count(RunState::finished), plan_.runs.size());
    const std::string table = write_sweep_table(plan_, statuses_);
    const size_t failed = count(RunState::failed);
    if (failed == 0) return table;
    const auto first = std::find_if(statuses_.begin(), statuses_.end(),
                                    [](const RunStatus& status) { return status.state == RunState::failed; });
    fmt::print("{}", table);
    fail("sweep: {} of {} runs failed, first {}: {}; run the same command to try them again", failed, plan_.runs.size(),
         plan_.runs[static_cast<size_t>(first - statuses_.begin())].name, first->message);
  }

 private:
  size_t count(RunState state) const {
    return static_cast<size_t>(std::count_if(statuses_.begin(), statuses_.end(),
                                             [&](const RunStatus& status) { return status.state == state; }));
  }

  // Returns the signal that ended it, or 0.
  int train_all() {
    const StopSignals signals;
    bool stopping = false;
    while (true) {
      if (!stopping && StopSignals::received()) {
        stopping = true;
        spdlog::info("signal {}: the runs save and leave", StopSignals::received());
        for (const ActiveRun& active : active_) active.process->stop();
      }
      if (!stopping) fill_places();
      if (active_.empty()) return StopSignals::received();
      std::this_thread::sleep_for(kPollInterval);
      collect(stopping);
    }
  }

  void fill_places() {
    for (size_t place = 0; place < places_.size(); ++place) {
      const bool busy =
          std::any_of(active_.begin(), active_.end(), [&](const ActiveRun& active) { return active.place == place; });
      while (!busy && next_ < plan_.runs.size() && statuses_[next_].state == RunState::finished) ++next_;
      if (!busy && next_ < plan_.runs.size()) start(next_++, place);
    }
  }

  std::string output_of(const PlannedRun& run) const { return run.config.run.dir + "/output.txt"; }

  void start(size_t index, size_t place) {
    const PlannedRun& run = plan_.runs[index];
    fs::create_directories(run.config.run.dir);
    std::vector<std::string> arguments = {"train", plan_.base};
    arguments.insert(arguments.end(), run.overrides.begin(), run.overrides.end());
    spdlog::info("{}/{} {}: {} tokens", index + 1, plan_.runs.size(), run.name,
                 format_count(static_cast<double>(run.tokens())));
    active_.push_back(
        {index, place, Clock::now(), std::make_unique<ChildProcess>(arguments, places_[place], output_of(run))});
  }

  void collect(bool stopping) {
    for (size_t i = active_.size(); i-- > 0;) {
      const std::optional<int> code = active_[i].process->poll();
      if (!code) continue;
      finish(active_[i], *code, stopping);
      active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
      record();
    }
  }

  void finish(const ActiveRun& ended, int code, bool stopping) {
    const PlannedRun& run = plan_.runs[ended.index];
    RunStatus& status = statuses_[ended.index];
    status = status_of(run);
    const double seconds = std::chrono::duration<double>(Clock::now() - ended.start).count();
    if (status.state == RunState::finished) {
      spdlog::info("{}: loss {:.4f} after {}", run.name, status.data->final_loss(), format_duration(seconds));
    } else if (!stopping) {
      status.state = RunState::failed;
      status.message = code == 0 || code >= 128 ? fmt::format("ended with code {} before its last step", code)
                                                : last_line(output_of(run));
      spdlog::error("{}: failed: {}; see {}", run.name, status.message, output_of(run));
    }
  }

  // sweep.json: the state of every run.
  void record() const {
    static constexpr std::array<const char*, 3> kNames = {"waiting", "finished", "failed"};
    nlohmann::ordered_json runs = nlohmann::ordered_json::array();
    for (size_t i = 0; i < plan_.runs.size(); ++i) {
      nlohmann::ordered_json run = {{"name", plan_.runs[i].name},
                                    {"state", kNames[static_cast<size_t>(statuses_[i].state)]}};
      if (!statuses_[i].message.empty()) run["message"] = statuses_[i].message;
      runs.push_back(run);
    }
    const nlohmann::ordered_json out = {{"sweep", plan_.name}, {"base", plan_.base}, {"runs", runs}};
    write_file(plan_.dir + "/sweep.json",
               out.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }

  SweepPlan plan_;
  SweepLock lock_;
  std::vector<std::vector<std::string>> places_;
  std::vector<RunStatus> statuses_;
  std::vector<ActiveRun> active_;
  size_t next_ = 0;
};

}  // namespace

std::string sweep_overview(const std::string& file, const SweepOptions& options) {
  const SweepPlan plan = plan_sweep(file);
  std::vector<RunStatus> statuses;
  for (const PlannedRun& run : plan.runs) statuses.push_back(status_of(run));
  const Speed speed = expected_speed(plan, statuses);
  const int at_once = gpus_for(plan) > 0 ? options.jobs : 1;  // the CPU's threads are divided, its speed stays
  return plan_text(plan, statuses, speed, at_once);
}

std::string run_sweep(const std::string& file, const SweepOptions& options) {
  return Sweep(file, options).run();
}

}  // namespace egmla
