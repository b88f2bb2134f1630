// The egmla binary: hands the arguments to a command; the only place that catches errors and turns them into exit
// codes.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <new>
#include <string>

#include "cli/commands.h"
#include "core/backends.h"
#include "core/check.h"
#include "core/files.h"
#include "core/version.h"

namespace egmla {
namespace {

#ifdef EGMLA_WITH_CUDA
constexpr const char* kBackEnds = "cpu, cuda";
#else
constexpr const char* kBackEnds = "cpu";
#endif

void add_commands(CLI::App& app) {
  add_train_command(app);
  add_eval_command(app);
  add_generate_command(app);
  add_checkpoint_command(app);
  add_export_command(app);
  add_import_command(app);
  add_inspect_command(app);
  add_config_command(app);
  add_data_command(app);
  add_tokenizer_command(app);
  add_sweep_command(app);
  add_report_command(app);
  add_compare_command(app);
  add_bench_command(app);
}

// Logs go to stderr, so that stdout holds results alone.
void start_log() {
  spdlog::set_default_logger(spdlog::stderr_color_mt("egmla"));
  spdlog::set_pattern("%H:%M:%S %^%l%$ %v");
}

// The last line on stderr, whatever happened.
int report(ExitCode code, std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  spdlog::default_logger()->flush();
  std::fflush(stdout);
  fmt::print(stderr, "error: {}\n", message);
  return static_cast<int>(code);
}

// "egmla checkpoint list": the command as far as it was understood.
std::string command_of(const CLI::App& app) {
  std::string name = app.get_name();
  for (const CLI::App* command : app.get_subcommands()) name += " " + command_of(*command);
  return name;
}

int run(int argc, char** argv) {
  CLI::App app{"Pre-trains small language models with MHA, MLA and EG-MLA attention", "egmla"};
  app.set_version_flag("--version",
                       fmt::format("egmla {} (commit {}) back ends: {}", EGMLA_VERSION, EGMLA_COMMIT, kBackEnds));
  app.footer("Example: egmla train configs/quickstart.yaml train.max_steps=100");
  app.require_subcommand(1);
  add_commands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      return report(ExitCode::usage, fmt::format("{}; see {} --help", error.what(), command_of(app)));
    }
    app.exit(error);  // --help and --version
  }
  errno = 0;
  check(std::fflush(stdout) == 0 && !std::ferror(stdout), "stdout: writing failed: {}; the output is incomplete",
        errno != 0 ? system_error_text() : "an earlier write was refused");
  return static_cast<int>(ExitCode::success);
}

}  // namespace
}  // namespace egmla

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit becomes a write error with a message
  egmla::start_log();
  try {
    return egmla::run(argc, argv);
  } catch (const egmla::Error& error) {
    return egmla::report(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return egmla::report(egmla::ExitCode::runtime, "out of host memory; use a smaller model or batch");
  } catch (const std::filesystem::filesystem_error& error) {
    return egmla::report(egmla::ExitCode::runtime, fmt::format("{}: the file system refused a call: {}",
                                                               error.path1().string(), error.code().message()));
  } catch (const std::exception& error) {
    return egmla::report(egmla::ExitCode::runtime, error.what());
  }
}
