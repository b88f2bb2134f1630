// Sampling, text as it is shown, prompts, and the command as a user meets it: flags, pipes, a terminal.
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/files.h"
#include "egmla_command.h"
#include "infer/decoder.h"
#include "infer/prompts.h"
#include "infer/text_stream.h"
#include "model_variants.h"
#include "unigram_model.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

TEST(Sampling, PenaltyMovesSeenTokensOnce) {
  std::vector<float> logits = {2.0F, -1.0F, 4.0F, 0.0F};
  const std::vector<int32_t> seen = {2, 1, 2};
  penalize_repetition(logits, seen, 2.0);
  EXPECT_EQ(logits, (std::vector<float>{2.0F, -2.0F, 2.0F, 0.0F}));
  penalize_repetition(logits, seen, 1.0);
  EXPECT_EQ(logits, (std::vector<float>{2.0F, -2.0F, 2.0F, 0.0F}));
  for (const double bad : {0.0, -1.0, std::nan("")})
    EXPECT_THROW(check_sampling({.repetition_penalty = bad}), Error) << bad;
}

// A penalty so strong that a token seen never comes back: no id occurs twice.
TEST(Sampling, PenaltyActsOnPromptAndText) {
  ModelConfig config = variant("mla").model;
  Context context;
  auto model = build(config, context, DType::f32);
  const std::vector<int32_t> prompt = {3, 7, 9};
  const GenerationOptions greedy{.max_new_tokens = 30, .sampling = {.temperature = 0}};
  GenerationOptions penalized = greedy;
  penalized.sampling.repetition_penalty = 1e9;
  std::vector<int32_t> ids = prompt;
  for (const int32_t id : generate(*model, prompt, penalized)) ids.push_back(id);
  std::vector<int32_t> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(std::adjacent_find(sorted.begin(), sorted.end()), sorted.end());
  EXPECT_NE(generate(*model, prompt, greedy), std::vector<int32_t>(ids.begin() + 3, ids.end()));
}

TEST(Sampling, StoppedEndsTheText) {
  Context context;
  auto model = build(variant("mha").model, context, DType::f32);
  int drawn = 0;
  GenerationOptions options{.max_new_tokens = 20, .sampling = {}};
  options.on_token = [&](int32_t) { ++drawn; };
  options.stopped = [&] { return drawn == 5; };
  EXPECT_EQ(generate(*model, {1, 2}, options).size(), 5U);
}

// What a stream shows, part by part.
std::vector<std::string> shown(const std::vector<std::string>& stops, const std::vector<std::string>& parts,
                               bool* stopped = nullptr) {
  std::vector<std::string> out;
  TextStream stream(stops, [&](std::string_view text) { out.emplace_back(text); });
  for (const std::string& part : parts) stream.push(part);
  if (!stream.stopped()) stream.finish();
  if (stopped) *stopped = stream.stopped();
  return out;
}

using Parts = std::vector<std::string>;

TEST(TextStream, ShowsWholeCharacters) {
  EXPECT_EQ(shown({}, {"a", "\xe2", "\x82", "\xac", "b"}), Parts({"a", "\xe2\x82\xac", "b"}));
  EXPECT_EQ(shown({}, {"\xf0\x9f", "\x98\x80x\xc3"}), Parts({"\xf0\x9f\x98\x80x", "\xef\xbf\xbd"}));
  // Broken bytes become U+FFFD as decoders write it: one for each longest beginning of a character.
  const std::string no = "\xef\xbf\xbd";
  EXPECT_EQ(shown({}, {"\xe2\x82", "a"}), Parts({no + "a"}));
  EXPECT_EQ(shown({}, {"\x80\xff"}), Parts({no + no}));
  EXPECT_EQ(shown({}, {"\xed\xa0\x80"}), Parts({no + no + no}));  // a surrogate
  EXPECT_EQ(shown({}, {"\xc0\xaf"}), Parts({no + no}));           // overlong
  EXPECT_EQ(shown({}, {"\xf4\x90\x80\x80"}), Parts({no + no + no + no}));
  EXPECT_EQ(shown({}, {"\xf0\x9f\x98"}), Parts({no}));
}

TEST(TextStream, HoldsBackWhatMayBecomeAStop) {
  bool stopped = false;
  EXPECT_EQ(shown({"END"}, {"abE", "N", "Dx"}, &stopped), Parts({"ab"}));
  EXPECT_TRUE(stopped);
  EXPECT_EQ(shown({"END"}, {"abE", "N", "x", "E"}, &stopped), Parts({"ab", "ENx", "E"}));
  EXPECT_FALSE(stopped);
  // The first place counts, whichever string it is; a beginning inside a beginning is found.
  EXPECT_EQ(shown({"cd", "b"}, {"a", "bcd"}, &stopped), Parts({"a"}));
  EXPECT_EQ(shown({"aab"}, {"aa", "ab"}, &stopped), Parts({"a"}));
  EXPECT_TRUE(stopped);
  EXPECT_EQ(shown({"\n"}, {"one line\nmore"}, &stopped), Parts({"one line"}));
  // A stop that begins with the bytes of a character that is still incomplete.
  EXPECT_EQ(shown({"\xe2\x82\xac"}, {"a\xe2", "\x82", "\xac"}, &stopped), Parts({"a"}));
  EXPECT_TRUE(stopped);
  EXPECT_THROW(TextStream({""}, {}), Error);
}

class Generate : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = (fs::temp_directory_path() / fmt::format("egmla_generate_{}_{}", info->name(), ::getpid())).string();
    fs::create_directories(folder_);
    write_unigram_model(model(), thousand());
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string model() const { return folder_ + "/model.h5"; }
  std::string file(const std::string& name, const std::string& text) const {
    write_file(folder_ + "/" + name, text);
    return folder_ + "/" + name;
  }
  // Greedy: " a" for ever.
  Outcome run(const std::string& arguments, const std::string& prefix = "") const {
    return egmla_command(fmt::format("generate '{}' --temperature 0 --max-new-tokens 3 {}", model(), arguments),
                         prefix);
  }

  std::string folder_;
};

TEST_F(Generate, StreamsAndTellsSpeedAndCache) {
  const Outcome done = run("--prompt 'say'");
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(done.out, "say a a a\n");
  // Keys and values of one layer, 2 x 8 floats; 3 tokens given, 3 drawn.
  EXPECT_EQ(done.err.rfind("3 tokens in ", 0), 0U) << done.err;
  EXPECT_NE(done.err.find("cache 64 bytes per token, 0.00 MB for 6 tokens\n"), std::string::npos) << done.err;
  EXPECT_EQ(run("--prompt ''").out, " a a a\n");
}

TEST_F(Generate, StopStringsAndJson) {
  const Json length = Json::parse(run("--prompt say --json").out);
  EXPECT_EQ(length,
            Json::parse(R"({"prompt": "say", "completion": " a a a", "tokens": 3, "finish_reason": "length"})"));
  const Json stopped = Json::parse(run("--prompt say --json --stop xyz --stop 'a a'").out);
  EXPECT_EQ(stopped, Json::parse(R"({"prompt": "say", "completion": " ", "tokens": 2, "finish_reason": "stop"})"));
  write_unigram_model(model(), {{kEnd, 1000.0}});
  const Json ended = Json::parse(run("--prompt say --json").out);
  EXPECT_EQ(ended, Json::parse(R"({"prompt": "say", "completion": "", "tokens": 0, "finish_reason": "stop"})"));
}

TEST_F(Generate, SeveralPromptsAsLinesOrJson) {
  const std::string lines = file("prompts.txt", "one\n\ntwo {x}\r\n"),
                    rows = file("prompts.any", "{\"prompt\": \"one\"}\n{\"id\": 7, \"prompt\": \"two {x}\"}");
  for (const std::string& path : {lines, rows}) {
    const Outcome done = run(fmt::format("--prompts '{}'", path));
    EXPECT_EQ(done.code, 0) << done.err;
    const size_t feed = done.out.find('\n');
    EXPECT_EQ(Json::parse(done.out.substr(0, feed))["prompt"], "one");
    const Json second = Json::parse(done.out.substr(feed));
    EXPECT_EQ(second["prompt"], "two {x}");
    EXPECT_EQ(second["completion"], " a a a");
  }
  const Outcome bad = run(fmt::format("--prompts '{}'", file("x.jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n")));
  EXPECT_EQ(bad.code, 2);
  EXPECT_NE(
      bad.last_line().find(R"(x.jsonl:2: found "{\"text\": \"b\"}"; expected a JSON object with a string "prompt")"),
      std::string::npos)
      << bad.err;
  const Outcome none = run(fmt::format("--prompts '{}'", file("none.txt", "\n")));
  EXPECT_EQ(none.code, 2);
  EXPECT_NE(none.err.find("holds no prompt"), std::string::npos) << none.err;
  EXPECT_EQ(run(fmt::format("--prompt a --prompts '{}'", lines)).code, 2);
}

TEST_F(Generate, FullOutputEndsAtOnce) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const std::string log = folder_ + "/log";
  const int status =
      std::system(fmt::format("'{}' generate '{}' --prompt a >/dev/full 2>'{}'", EGMLA_BINARY, model(), log).c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_EQ(read_file(log), "error: stdout: writing failed: No space left on device; the output is incomplete\n");
}

TEST_F(Generate, ReadsAPipe) {
  EXPECT_EQ(run("", "printf 'two\\nlines\\n' |").out, "two\nlines a a a\n");
  const Outcome empty = run("</dev/null");
  EXPECT_EQ(empty.code, 2);
  EXPECT_NE(empty.last_line().find("no prompt on standard input"), std::string::npos) << empty.err;
}

TEST_F(Generate, RefusesAPromptBeyondThePositions) {
  const std::string text(kPositions, 'x');
  const Outcome done = run(fmt::format("--prompts '{}'", file("p.txt", "short\n" + text + "\n")));
  EXPECT_EQ(done.code, 2);
  EXPECT_EQ(done.out, "");
  EXPECT_NE(done.last_line().find("p.txt:2: the prompt has 512 tokens; expected at most 511"), std::string::npos);
}

// Drawn from all bytes alike, most of which are no UTF-8 by themselves: what is shown always is.
TEST_F(Generate, ShowsValidTextWhateverIsDrawn) {
  write_unigram_model(model(), {{kEnd, 1e-9}});
  const std::string arguments = fmt::format("generate '{}' --prompt x --max-new-tokens 400 --seed 3", model());
  const Outcome first = egmla_command(arguments);
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_NO_THROW(Json(first.out).dump());  // dump() refuses what is not UTF-8
  EXPECT_NE(first.out.find("\xef\xbf\xbd"), std::string::npos);
  EXPECT_EQ(egmla_command(arguments).out, first.out);
  EXPECT_NE(egmla_command(arguments + " --seed 4").out, first.out);
}

// Without a prompt, at a terminal: a prompt a line until Ctrl-D.
TEST_F(Generate, ConversesAtATerminal) {
  int terminal = -1;
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::execl(EGMLA_BINARY, EGMLA_BINARY, "generate", model().c_str(), "--temperature", "0", "--max-new-tokens", "3",
            nullptr);
    ::_exit(127);
  }
  std::string seen;
  const auto wait_for = [&](const std::string& text) {
    char block[4096];
    while (seen.find(text) == std::string::npos) {
      const ssize_t count = ::read(terminal, block, sizeof block);
      if (count <= 0) return false;
      seen.append(block, static_cast<size_t>(count));
    }
    seen.erase(0, seen.find(text) + text.size());
    return true;
  };
  const auto type = [&](const std::string& text) {
    return ::write(terminal, text.data(), text.size()) == std::ssize(text);
  };
  EXPECT_TRUE(wait_for("> ") && type("say\n") && wait_for("say a a a\r\n")) << seen;
  EXPECT_TRUE(wait_for("> ") && type("more\n") && wait_for("more a a a\r\n")) << seen;
  EXPECT_TRUE(wait_for("> ") && type("\x04") && wait_for("6 tokens in ")) << seen;
  while (wait_for("\n")) {
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ::close(terminal);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace egmla::test
