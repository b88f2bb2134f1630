#include "lab/sweep_plan_file.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/check.h"
#include "core/files.h"
#include "io/config_keys.h"
#include "io/config_yaml.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

std::string flow_text(const YAML::Node& node) {
  YAML::Emitter emitter;
  emitter.SetSeqFormat(YAML::Flow);
  emitter.SetMapFormat(YAML::Flow);
  emitter << node;
  return emitter.c_str();
}

std::string label_of(const YAML::Node& node) {
  if (node.IsNull()) return "null";
  return node.IsScalar() ? node.Scalar() : flow_text(node);
}

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path) {}

  SweepFile read() {
    const YAML::Node root = parse_yaml(read_file(path_), [&](int line) { return fmt::format("{}:{}", path_, line); });
    check_usage(root.IsMap(), "{}: found {}; expected the keys base and grid", path_, found_text(root));
    file_.path = path_;
    for (const auto& item : root) read_key(key_of(item), item.second);
    check_usage(!file_.base.empty(), "{}: missing base, the configuration that every run starts from", path_);
    if (file_.name.empty()) file_.name = fs::path(path_).stem().string();
    if (file_.dir.empty()) file_.dir = "runs/sweeps/" + file_.name;
    if (skip_) read_rules(skip_);
    if (hold_) read_hold(hold_);
    return file_;
  }

 private:
  template <class... Args>
  void rule(bool ok, const YAML::Node& node, fmt::format_string<Args...> format, Args&&... args) const {
    if (!ok) fail_usage("{}:{}: {}", path_, node.Mark().line + 1, fmt::format(format, std::forward<Args>(args)...));
  }

  template <class Item>
  std::string key_of(const Item& item) const {
    rule(item.first.IsScalar(), item.first, "found {} as a key; expected a name", found_text(item.first));
    return item.first.Scalar();
  }

  std::string text_of(const std::string& key, const YAML::Node& node) const {
    rule(node.IsScalar() && !node.Scalar().empty(), node, "{}: found {}; expected text", key, found_text(node));
    return node.Scalar();
  }

  void read_key(const std::string& key, const YAML::Node& node) {
    if (key == "name") {
      file_.name = text_of(key, node);
    } else if (key == "dir") {
      file_.dir = text_of(key, node);
    } else if (key == "base") {
      file_.base = (fs::path(path_).parent_path() / text_of(key, node)).lexically_normal().string();
    } else if (key == "set") {
      file_.overrides = settings_of(key, node);
    } else if (key == "grid") {
      rule(node.IsMap() && node.size() > 0, node,
           "grid: found {}; expected axes such as train.optimizer.lr: [1e-3, 2e-3]", found_text(node));
      for (const auto& item : node) read_axis(key_of(item), item.second);
    } else if (key == "seeds") {
      read_seeds(node);
    } else if (key == "skip") {
      skip_ = node;  // read when the axes are known
    } else if (key == "hold") {
      hold_ = node;
    } else {
      rule(false, node, "unknown key '{}'; expected one of name, dir, base, set, grid, seeds, skip, hold", key);
    }
  }

  // {key: value, ...} with dotted keys of a configuration.
  std::vector<std::string> settings_of(const std::string& owner, const YAML::Node& node) const {
    rule(node.IsMap() || node.IsNull(), node, "{}: found {}; expected settings such as {{train.max_steps: 100}}", owner,
         found_text(node));
    std::vector<std::string> out;
    for (const auto& item : node) {
      const std::string key = key_of(item);
      check_config_key(key, item.first);
      out.push_back(key + "=" + flow_text(item.second));
    }
    return out;
  }

  void check_config_key(const std::string& key, const YAML::Node& node) const {
    rule(find_config_key(key) || is_config_section(key), node, "unknown key '{}'; the nearest valid key is '{}'", key,
         nearest_config_key(key));
    rule(key != "run.name" && key != "run.dir" && key != "run.seed", node,
         "{} is the sweep's own: runs are named by their values; seeds stand under 'seeds'", key);
  }

  void read_axis(const std::string& name, const YAML::Node& node) {
    Axis axis{.name = name, .short_name = "", .values = {}};
    rule(std::none_of(file_.axes.begin(), file_.axes.end(), [&](const Axis& other) { return other.name == name; }),
         node, "grid: the axis '{}' is given twice", name);
    if (node.IsMap()) {
      rule(!find_config_key(name) && !is_config_section(name), node,
           "grid: {}: found a mapping; expected a list of values, or for a linked group a name that is no key", name);
      for (const auto& item : node) {
        const std::string label = key_of(item);
        axis.values.push_back({label, settings_of(name + "." + label, item.second)});
      }
    } else {
      rule(node.IsSequence(), node, "grid: {}: found {}; expected a list of values or a group of settings", name,
           found_text(node));
      check_config_key(name, node);
      axis.short_name = name.substr(name.rfind('.') + 1);
      for (const auto& value : node) axis.values.push_back({label_of(value), {name + "=" + flow_text(value)}});
    }
    rule(!axis.values.empty(), node, "grid: {}: no value; expected one or more", name);
    std::set<std::string> labels;
    for (const AxisValue& value : axis.values)
      rule(labels.insert(value.label).second, node, "grid: {}: '{}' is given twice", name, value.label);
    file_.axes.push_back(std::move(axis));
  }

  void read_seeds(const YAML::Node& node) {
    rule(node.IsSequence() && node.size() > 0, node, "seeds: found {}; expected a list of integers", found_text(node));
    for (const auto& item : node) {
      int64_t seed = 0;
      const Mismatch expected = read_value(item, seed, at_least(0));
      rule(!expected, item, "seeds: found {}; expected {}", found_text(item), expected.value_or(""));
      rule(std::find(file_.seeds.begin(), file_.seeds.end(), seed) == file_.seeds.end(), item,
           "seeds: {} is given twice", seed);
      file_.seeds.push_back(seed);
    }
  }

  // {axis: label or list of labels}. A rule that could never match is a mistake.
  AxisRule axis_rule(const YAML::Node& node) const {
    rule(node.IsMap(), node, "found {}; expected a rule such as {{AXIS: VALUE}}", found_text(node));
    AxisRule out;
    for (const auto& item : node) {
      const std::string name = key_of(item);
      const auto axis =
          std::find_if(file_.axes.begin(), file_.axes.end(), [&](const Axis& other) { return other.name == name; });
      rule(axis != file_.axes.end(), item.first, "'{}' is no axis of the grid", name);
      const YAML::Node& value = item.second;
      std::vector<std::string>& labels = out[name];
      if (value.IsSequence()) {
        for (const auto& label : value) labels.push_back(label_of(label));
      } else {
        labels.push_back(label_of(value));
      }
      for (const std::string& label : labels) {
        rule(
            std::any_of(axis->values.begin(), axis->values.end(), [&](const AxisValue& v) { return v.label == label; }),
            item.first, "'{}' is no value of the axis {}", label, name);
      }
    }
    return out;
  }

  void read_rules(const YAML::Node& node) {
    rule(node.IsSequence(), node, "skip: found {}; expected a list of rules", found_text(node));
    for (const auto& item : node) {
      file_.skip.push_back(axis_rule(item));
      rule(!file_.skip.back().empty(), item, "skip: an empty rule would skip every run");
    }
  }

  void read_quantity(const YAML::Node& node) {
    static const EnumNames<HeldQuantity> kQuantities = {{HeldQuantity::tokens, "tokens"},
                                                        {HeldQuantity::parameters, "parameters"},
                                                        {HeldQuantity::total_parameters, "total_parameters"},
                                                        {HeldQuantity::flops, "flops"}};
    HeldQuantity quantity{};
    const Mismatch expected = read_value(node, quantity, kQuantities);
    rule(!expected, node, "hold: equal: found {}; expected {}", found_text(node), expected.value_or(""));
    file_.hold.quantities.push_back(quantity);
  }

  void read_hold(const YAML::Node& node) {
    rule(node.IsMap() && node["equal"], node, "hold: found {}; expected {{equal: QUANTITY, ...}}", found_text(node));
    for (const auto& item : node) {
      const std::string key = key_of(item);
      if (key == "equal" && item.second.IsSequence()) {
        for (const auto& quantity : item.second) read_quantity(quantity);
      } else if (key == "equal") {
        read_quantity(item.second);
      } else if (key == "reference") {
        file_.hold.reference = axis_rule(item.second);
      } else if (key == "multiple_of") {
        const Mismatch expected = read_value(item.second, file_.hold.multiple_of, at_least(1));
        rule(!expected, item.second, "hold: multiple_of: found {}; expected {}", found_text(item.second),
             expected.value_or(""));
      } else {
        rule(false, item.first, "hold: unknown key '{}'; expected one of equal, reference, multiple_of", key);
      }
    }
    const auto widths = std::count_if(file_.hold.quantities.begin(), file_.hold.quantities.end(),
                                      [](HeldQuantity quantity) { return quantity != HeldQuantity::tokens; });
    rule(widths <= 1, node, "hold: one width cannot hold {} quantities equal; keep one beside tokens", widths);
  }

  std::string path_;
  SweepFile file_;
  YAML::Node skip_{YAML::NodeType::Undefined}, hold_{YAML::NodeType::Undefined};
};

}  // namespace

SweepFile read_sweep_file(const std::string& path) {
  return Reader(path).read();
}

}  // namespace egmla
