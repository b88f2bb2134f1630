#include "infer/text_stream.h"

#include <algorithm>

#include "core/check.h"

namespace egmla {
namespace {

constexpr const char* kReplacement = "\xef\xbf\xbd";  // U+FFFD

struct Sequence {
  size_t bytes;   // that belong together
  bool complete;  // a whole character
  bool open;      // more bytes could complete it
};

uint8_t byte_at(std::string_view text, size_t i) {
  return static_cast<uint8_t>(text[i]);
}

// The longest beginning of a character at the front of a text: what decoders replace as one when it is broken.
Sequence sequence_at(std::string_view text) {
  const uint8_t lead = byte_at(text, 0);
  const size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  if (length == 0) return {.bytes = 1, .complete = false, .open = false};
  // Overlong forms, surrogates and codes above U+10FFFF show in the second byte.
  const uint8_t first = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const uint8_t last = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {.bytes = i, .complete = false, .open = true};
    const uint8_t next = byte_at(text, i);
    const bool fits = i == 1 ? next >= first && next <= last : next >= 0x80 && next <= 0xbf;
    if (!fits) return {.bytes = i, .complete = false, .open = false};
  }
  return {.bytes = length, .complete = true, .open = false};
}

// Bytes at the end of a text that begin a stop string.
size_t begun_stop(std::string_view text, const std::vector<std::string>& stops) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t n = std::min(stop.size() - 1, text.size()); n > longest; --n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) longest = n;
    }
  }
  return longest;
}

}  // namespace

TextStream::TextStream(std::vector<std::string> stops, Show show) : stops_(std::move(stops)), show_(std::move(show)) {
  for (const std::string& stop : stops_) check_usage(!stop.empty(), "--stop: is empty; expected a text");
}

void TextStream::push(std::string_view bytes) {
  if (stopped_) return;
  held_ += bytes;
  size_t found = std::string::npos;
  for (const std::string& stop : stops_) found = std::min(found, held_.find(stop));
  stopped_ = found != std::string::npos;
  if (stopped_) {
    held_.resize(found);
    finish();
  } else {
    show_before(held_.size() - begun_stop(held_, stops_), false);
  }
}

void TextStream::finish() {
  show_before(held_.size(), true);
}

// `last`: nothing follows `end`, so a begun character will not be completed.
void TextStream::show_before(size_t end, bool last) {
  std::string out;
  size_t at = 0;
  while (at < end) {
    const Sequence next = sequence_at(std::string_view(held_).substr(at, end - at));
    if (next.open && !last) break;
    out += next.complete ? std::string_view(held_).substr(at, next.bytes) : std::string_view(kReplacement);
    at += next.bytes;
  }
  held_.erase(0, at);
  if (!out.empty()) show_(out);
}

}  // namespace egmla
