// YAML text to a node, strictly: one document, and every byte of the text belongs to it.
#pragma once

#include <yaml-cpp/yaml.h>

#include <functional>
#include <string>

namespace egmla {

// `place_of_line` makes the head of a message from a line, counted from 1. An empty text gives a null node.
YAML::Node parse_yaml(const std::string& text, const std::function<std::string(int line)>& place_of_line);

}  // namespace egmla
