// Prompts to texts: a trained model, its tokenizer, stop strings, and what it cost.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "infer/decoder.h"
#include "infer/trained_model.h"

namespace egmla {

struct TextOptions {
  GenerationOptions generation;    // end_of_text and the callbacks are filled in here
  std::vector<std::string> stops;  // a text ends before the first of them
};

struct Completion {
  std::string text;             // without the prompt; valid UTF-8
  int64_t tokens = 0;           // drawn, end of text not counted
  const char* finish_reason{};  // "stop": end of text or a stop string; "length": as many tokens as asked or possible
};

struct GenerationCost {
  int64_t prompts = 0, prompt_tokens = 0, tokens = 0;
  double first_seconds = 0;  // until the first token of each prompt, together
  double seconds = 0;        // all
  int64_t longest = 0;       // tokens of the longest sequence, prompt included
};

class TextGenerator {
 public:
  TextGenerator(TrainedModel& trained, TextOptions options);

  // An empty prompt begins a document: it stands for the end-of-text id.
  std::vector<int32_t> encode(const std::string& prompt) const;
  // Why a prompt cannot be continued, if so: "the prompt has 600 tokens; expected at most 511, ...".
  std::optional<std::string> refusal(const std::string& prompt) const;
  // The n-th call draws with the seed + n. `show` receives the completion in parts, each of whole characters.
  Completion complete(const std::string& prompt, const std::function<void(std::string_view)>& show);

  const GenerationCost& cost() const { return cost_; }
  // Bytes that a token takes in the cache, all layers.
  int64_t cache_bytes_per_token() const;

 private:
  TrainedModel& trained_;
  TextOptions options_;
  GenerationCost cost_;
};

}  // namespace egmla
