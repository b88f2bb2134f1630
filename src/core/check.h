// The one exception type and the helpers that raise it.
// Message form: "<what>: <what was found>; <what was expected or the remedy>", one line, no trailing full stop.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace egmla {

// Process exit codes of the egmla binary (docs/conventions.md lists them).
enum class ExitCode : int {
  success = 0,
  runtime = 1,  // a failure at run time: full disk, lost GPU, non-finite loss
  usage = 2,    // usage, configuration, or an unusable input file (shard, tokenizer, checkpoint)
};

// The single exception type; caught only in the command line's main.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// Raises Error with ExitCode::runtime.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ExitCode::runtime, fmt::format(format, std::forward<Args>(args)...));
}

// Raises Error with ExitCode::usage: the user's input is at fault.
template <class... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ExitCode::usage, fmt::format(format, std::forward<Args>(args)...));
}

// Raises a runtime Error unless `ok`. Messages lead with the operation's name: "rms_norm: weight must be [C]; ...".
template <class... Args>
void check(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]]
    fail(format, std::forward<Args>(args)...);
}

// Raises a usage Error unless `ok`.
template <class... Args>
void check_usage(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]]
    fail_usage(format, std::forward<Args>(args)...);
}

}  // namespace egmla
