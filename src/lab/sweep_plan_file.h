// A sweep's file as it stands: base, common settings, axes, seeds, skip rules, what is held equal.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace egmla {

// One value of an axis: its name in tables and run names, and the keys it sets as "key=value".
struct AxisValue {
  std::string label;
  std::vector<std::string> overrides;
};

struct Axis {
  std::string name;        // in tables and rules: the key, or the name of a linked group
  std::string short_name;  // in run names: the key's last part; empty for a linked group
  std::vector<AxisValue> values;
};

// Axis -> labels; a run matches when each axis named has one of its labels.
using AxisRule = std::map<std::string, std::vector<std::string>>;

enum class HeldQuantity : uint8_t { tokens, parameters, total_parameters, flops };

struct HoldRule {
  std::vector<HeldQuantity> quantities;
  AxisRule reference;       // empty: the first run
  int64_t multiple_of = 8;  // of a solved width
};

struct SweepFile {
  std::string path, name, dir, base;
  std::vector<std::string> overrides;  // of every run
  std::vector<Axis> axes;
  std::vector<int64_t> seeds;  // empty: the base's
  std::vector<AxisRule> skip;
  HoldRule hold;
};

// Raises usage errors that name file:line, what was found and what was expected.
SweepFile read_sweep_file(const std::string& path);

}  // namespace egmla
