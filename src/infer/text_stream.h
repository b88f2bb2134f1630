// Text on its way to a reader while its tokens are drawn: whole UTF-8 characters only, and nothing that may still turn
// out to be the beginning of a stop string. Bytes that are no UTF-8 are shown as U+FFFD.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace egmla {

class TextStream {
 public:
  using Show = std::function<void(std::string_view text)>;

  // Stop strings must not be empty.
  TextStream(std::vector<std::string> stops, Show show);

  // The bytes of the next token.
  void push(std::string_view bytes);
  // Shows what was held back: the text has ended.
  void finish();
  // A stop string was found; it and what follows are never shown.
  bool stopped() const { return stopped_; }

 private:
  void show_before(size_t end, bool last);

  std::vector<std::string> stops_;
  Show show_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace egmla
