#include "lab/sweep.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <map>
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

// What one place adds to its runs' environment: a GPU of their own, or their share of the CPU's threads.
std::vector<std::vector<std::string>> places_for(int gpus, const SweepOptions& options) {
  const int jobs = options.jobs;
  check_usage(gpus == 0 || jobs <= gpus || options.share_gpus,
              "--jobs {}: found {} GPU{}; expected at most one run for each, or --share-gpus", jobs, gpus,
              gpus == 1 ? "" : "s");
  std::vector<std::vector<std::string>> places;
  if (gpus > 0) {
    const auto names = gpu_names(gpus);
    for (int i = 0; i < jobs; ++i) places.push_back({"CUDA_VISIBLE_DEVICES=" + names[static_cast<size_t>(i % gpus)]});
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

// One sweep's runs and what is known of them.
class Sweep {
 public:
  explicit Sweep(const std::string& file) : plan_(plan_sweep(file)), lock_(plan_.dir), statuses_(statuses_of(plan_)) {
    for (const PlannedRun& run : plan_.runs) keys_.push_back(training_key(run));
  }

  const SweepPlan& plan() const { return plan_; }
  const RunStatus& status(size_t index) const { return statuses_[index]; }
  const std::string& key(size_t index) const { return keys_[index]; }
  size_t count(RunState state) const {
    return static_cast<size_t>(std::count_if(statuses_.begin(), statuses_.end(),
                                             [&](const RunStatus& status) { return status.state == state; }));
  }

  // What is to do: the first seed of every setting, then the second, so that a sweep cut short has all settings.
  std::vector<size_t> order() const {
    std::vector<std::pair<size_t, size_t>> ranked;  // seed's rank, run
    size_t rank = 0;
    for (size_t i = 0; i < plan_.runs.size(); ++i) {
      rank = i > 0 && plan_.runs[i].labels == plan_.runs[i - 1].labels ? rank + 1 : 0;
      if (statuses_[i].state != RunState::finished) ranked.emplace_back(rank, i);
    }
    std::sort(ranked.begin(), ranked.end());
    std::vector<size_t> out;
    for (const auto& item : ranked) out.push_back(item.second);
    return out;
  }

  void update(size_t index, RunStatus status) {
    statuses_[index] = std::move(status);
    record();
  }

  // sweep.json, the state of every run, and the tables so far, which are returned in Markdown.
  std::string record() const {
    nlohmann::ordered_json runs = nlohmann::ordered_json::array();
    for (size_t i = 0; i < plan_.runs.size(); ++i) {
      nlohmann::ordered_json run = {{"name", plan_.runs[i].name}, {"state", name_of(statuses_[i].state)}};
      if (!statuses_[i].message.empty()) run["message"] = statuses_[i].message;
      runs.push_back(run);
    }
    const nlohmann::ordered_json out = {{"sweep", plan_.name}, {"base", plan_.base}, {"runs", runs}};
    write_file(plan_.dir + "/sweep.json",
               out.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    return write_sweep_table(plan_, statuses_);
  }

 private:
  SweepPlan plan_;
  SweepLock lock_;
  std::vector<RunStatus> statuses_;
  std::vector<std::string> keys_;  // of trainings
};

struct ActiveRun {
  Sweep* sweep;
  size_t index, place;
  Clock::time_point start;
  std::unique_ptr<ChildProcess> process;

  const PlannedRun& run() const { return sweep->plan().runs[index]; }
};

// Deals the runs of all sweeps out to the places.
class Scheduler {
 public:
  Scheduler(const std::vector<std::string>& files, const SweepOptions& options) : options_(options) {
    int gpus = 0;
    for (const std::string& file : files) {
      sweeps_.push_back(std::make_unique<Sweep>(file));
      gpus = std::max(gpus, gpus_for(sweeps_.back()->plan()));
      for (const size_t index : sweeps_.back()->order()) waiting_.emplace_back(sweeps_.back().get(), index);
    }
    places_ = places_for(gpus, options);
  }

  std::string run() {
    for (const auto& sweep : sweeps_) {
      const SweepPlan& plan = sweep->plan();
      spdlog::info("{}: {} runs, {} of them finished, in {}", plan.name, plan.runs.size(),
                   sweep->count(RunState::finished), plan.dir);
      for (const std::string& note : plan.notes) spdlog::info("{}", note);
    }
    const int signal = train_all();
    std::string tables;
    for (const auto& sweep : sweeps_) {
      if (sweeps_.size() > 1) tables += fmt::format("{}## {}\n\n", tables.empty() ? "" : "\n", sweep->plan().name);
      tables += sweep->record();
    }
    if (signal == 0 && waiting_.empty() && count(RunState::failed) == 0) return tables;
    fmt::print("{}", tables);
    explain(signal);
  }

 private:
  size_t count(RunState state) const {
    size_t sum = 0;
    for (const auto& sweep : sweeps_) sum += sweep->count(state);
    return sum;
  }
  size_t runs() const {
    size_t sum = 0;
    for (const auto& sweep : sweeps_) sum += sweep->plan().runs.size();
    return sum;
  }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  // Why not every run is finished.
  [[noreturn]] void explain(int signal) const {
    check(signal == 0, "sweep: signal {}: stopped with {} of {} runs finished; run the same command to go on", signal,
          count(RunState::finished), runs());
    for (const auto& sweep : sweeps_) {
      for (size_t i = 0; i < sweep->plan().runs.size(); ++i) {
        const RunStatus& status = sweep->status(i);
        check(status.state != RunState::failed,
              "sweep: {} of {} runs failed, first {}: {}; run the same command to try them again",
              count(RunState::failed), runs(), sweep->plan().runs[i].name, status.message);
      }
    }
    fail("sweep: the time limit of {} s left {} of {} runs to do; run the same command to go on", options_.time_limit,
         waiting_.size(), runs());
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

  // Where no time is left for a long run a shorter one may still fit.
  void fill_places() {
    adopt_finished();
    for (size_t place = 0; place < places_.size(); ++place) {
      const bool busy =
          std::any_of(active_.begin(), active_.end(), [&](const ActiveRun& active) { return active.place == place; });
      const auto next = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& item) {
        return has_time_for(*item.first, item.second) && !trains_now(item.first->key(item.second));
      });
      if (busy || next == waiting_.end()) continue;
      const auto [sweep, index] = *next;
      waiting_.erase(next);
      start(*sweep, index, place);
    }
  }

  bool trains_now(const std::string& key) const {
    return std::any_of(active_.begin(), active_.end(),
                       [&](const ActiveRun& active) { return active.sweep->key(active.index) == key; });
  }

  // Several sweeps vary one base, so some of their runs are the same: they are trained once.
  void adopt_finished() {
    std::erase_if(waiting_, [&](const auto& item) {
      const PlannedRun& run = item.first->plan().runs[item.second];
      const PlannedRun* twin = fs::exists(run.config.run.dir) ? nullptr : finished_twin(item.first->key(item.second));
      if (!twin) return false;
      fs::create_directories(run.config.run.dir);
      adopt(run, *twin);
      item.first->update(item.second, status_of(run, true));
      spdlog::info("{} {}: the same training as {}", item.first->plan().name, run.name, twin->config.run.dir);
      return true;
    });
  }

  const PlannedRun* finished_twin(const std::string& key) const {
    for (const auto& sweep : sweeps_) {
      for (size_t i = 0; i < sweep->plan().runs.size(); ++i) {
        if (sweep->status(i).state == RunState::finished && sweep->key(i) == key) return &sweep->plan().runs[i];
      }
    }
    return nullptr;
  }

  // Whether the run would end within the limit at the speed of the slowest run of its sweep so far.
  bool has_time_for(const Sweep& sweep, size_t index) const {
    if (options_.time_limit <= 0) return true;
    const auto speed = slowest_.find(&sweep);
    const double expected = speed == slowest_.end() ? 0 : sweep.plan().runs[index].flops() / speed->second;
    return seconds() + expected < options_.time_limit;
  }

  static std::string output_of(const PlannedRun& run) { return run.config.run.dir + "/output.txt"; }

  void start(Sweep& sweep, size_t index, size_t place) {
    const PlannedRun& run = sweep.plan().runs[index];
    fs::create_directories(run.config.run.dir);
    std::vector<std::string> arguments = {"train", sweep.plan().base};
    arguments.insert(arguments.end(), run.overrides.begin(), run.overrides.end());
    spdlog::info("{} {}: {} tokens; {} runs wait", sweep.plan().name, run.name,
                 format_count(static_cast<double>(run.tokens())), waiting_.size());
    active_.push_back({&sweep, index, place, Clock::now(),
                       std::make_unique<ChildProcess>(arguments, places_[place], output_of(run))});
  }

  void collect(bool stopping) {
    for (size_t i = active_.size(); i-- > 0;) {
      const std::optional<int> code = active_[i].process->poll();
      if (!code) continue;
      finish(active_[i], *code, stopping);
      active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }

  void finish(const ActiveRun& ended, int code, bool stopping) {
    const PlannedRun& run = ended.run();
    RunStatus status = status_of(run, false);
    const double taken = std::chrono::duration<double>(Clock::now() - ended.start).count();
    if (status.state == RunState::finished) {
      spdlog::info("{}: loss {:.4f} after {}", run.name, status.data->final_loss(), format_duration(taken));
      const double speed = run.flops() / taken;
      const auto known = slowest_.emplace(ended.sweep, speed).first;
      known->second = std::min(known->second, speed);
    } else if (!stopping) {
      status.state = RunState::failed;
      status.message = code == 0 || code >= 128 ? fmt::format("ended with code {} before its last step", code)
                                                : last_line(output_of(run));
      spdlog::error("{}: failed: {}; see {}", run.name, status.message, output_of(run));
    }
    ended.sweep->update(ended.index, std::move(status));
  }

  SweepOptions options_;
  Clock::time_point start_ = Clock::now();
  std::vector<std::unique_ptr<Sweep>> sweeps_;
  std::vector<std::vector<std::string>> places_;
  std::deque<std::pair<Sweep*, size_t>> waiting_;
  std::vector<ActiveRun> active_;
  std::map<const Sweep*, double> slowest_;  // FLOP/s over a run's whole time
};

}  // namespace

std::string sweep_overview(const std::vector<std::string>& files, const SweepOptions& options) {
  std::string out;
  for (const std::string& file : files) {
    const SweepPlan plan = plan_sweep(file);
    const std::vector<RunStatus> statuses = statuses_of(plan);
    const Speed speed = expected_speed(plan, statuses);
    const int at_once = gpus_for(plan) > 0 ? options.jobs : 1;  // the CPU's threads are divided, its speed stays
    out += (out.empty() ? "" : "\n") + plan_text(plan, statuses, speed, at_once);
  }
  return out;
}

std::string run_sweeps(const std::vector<std::string>& files, const SweepOptions& options) {
  return Scheduler(files, options).run();
}

}  // namespace egmla
