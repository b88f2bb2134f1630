#include "io/config_yaml.h"

#include <yaml-cpp/eventhandler.h>

#include <sstream>

#include "core/check.h"

namespace egmla {
namespace {

// Notes where the latest document begins.
class DocumentStart : public YAML::EventHandler {
 public:
  int line() const { return line_; }

  void OnDocumentStart(const YAML::Mark& mark) override { line_ = mark.line + 1; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}

 private:
  int line_ = 1;
};

}  // namespace

// YAML::Load ignores all behind the first document, and YAML::LoadAll never ends on a stray comma; so two documents are
// looked for first.
YAML::Node parse_yaml(const std::string& text, const std::function<std::string(int line)>& place_of_line) {
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    DocumentStart start;
    const bool second = parser.HandleNextDocument(start) && parser.HandleNextDocument(start);
    check_usage(!second, "{}: a second YAML document begins here; expected one", place_of_line(start.line()));
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    fail_usage("{}: not valid YAML: {}", place_of_line(error.mark.line + 1), error.msg);
  }
}

}  // namespace egmla
