// Multiple choice: what each layout puts into words, where context and continuation part, and scores worked out by hand
// with a model of fixed probabilities (ln 0.001 = -6.907755, ln 0.743 = -0.297059).
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/files.h"
#include "egmla_command.h"
#include "infer/choice_tasks.h"
#include "infer/continuations.h"
#include "infer/decoder.h"
#include "infer/task_results.h"
#include "infer/task_row.h"
#include "model_variants.h"
#include "op_case.h"
#include "unigram_model.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

std::string sample(const std::string& name) {
  return EGMLA_SOURCE_DIR "/tests/data/tasks/" + name + ".jsonl";
}

struct Words {
  std::string layout;
  TaskKind kind;
  size_t question;
  std::string context, continuation;  // of the first choice
  size_t choices, answer;
  int64_t length;
};

TEST(ChoiceTasks, EachLayoutIsPutIntoWords) {
  const auto plain = TaskKind::choice, normalized = TaskKind::normalized_choice;
  const std::vector<Words> expected = {
      {"choices", normalized, 0, "Pick the letter a:", " bb", 3, 1, 2},
      {"choices", normalized, 1, "Pick eight letters:", " bb", 2, 1, 2},
      {"hellaswag", normalized, 0, "Making tea: A girl fills a kettle. She", " boils.", 4, 3, 6},
      // The mark at the front goes and leaves its space; the rest of ctx_b becomes small.
      {"hellaswag", normalized, 1, "Cleaning a lamp: How to clean a lamp. Unplug the Lamp. Then wait", "  Go.", 2, 1,
       4},
      {"arc", normalized, 0, "Question: Which one floats?\nAnswer:", " iron", 2, 1, 4},
      {"arc", normalized, 1, "Question: Which one is hot?\nAnswer:", " ice", 3, 2, 3},
      {"piqa", normalized, 0, "Question: Open a tin.\nAnswer:", " a key", 2, 0, 5},
      {"winogrande", plain, 0, "The ball did not fit the box because the ball", " was too big.", 2, 0, 12},
      {"winogrande", plain, 1, "Tom thanked Jim since Jim", " had been helped.", 2, 1, 16},
      {"siqa", plain, 1, "Q: Kim lost the keys. What will Kim do?\nA:", " sing", 3, 1, 4},
      {"mmlu", plain, 0,
       "The following are multiple choice questions (with answers) about elementary mathematics.\n\n"
       "What is 2 + 2?\nA. 4\nB. 5\nC. 6\nD. 7\nAnswer:",
       " A", 4, 0, 1},
      {"mmlu", plain, 1, "Which is a prime?\nA. 4\nB. 6\nC. 7\nD. 8\nAnswer:", " A", 4, 2, 1},
      {"lambada", TaskKind::last_word, 0, "The first letter of the alphabet is", " a", 1, 0, 1},
  };
  for (const Words& each : expected) {
    const ChoiceTask task = read_choice_task(sample(each.layout));
    EXPECT_EQ(task.layout, each.layout);
    EXPECT_EQ(task.name, each.layout);
    EXPECT_EQ(task.kind, each.kind) << each.layout;
    ASSERT_GT(task.questions.size(), each.question);
    const Question& question = task.questions[each.question];
    ASSERT_EQ(question.choices.size(), each.choices) << each.layout;
    EXPECT_EQ(question.choices.front().context, each.context);
    EXPECT_EQ(question.choices.front().continuation, each.continuation);
    EXPECT_EQ(question.choices.front().length, each.length) << each.layout;
    EXPECT_EQ(question.answer, each.answer) << each.layout;
  }
  EXPECT_EQ(read_choice_task(sample("winogrande")).questions[0].choices[1].context,
            "The ball did not fit the box because the box");
  EXPECT_EQ(read_choice_task("mine=" + sample("arc")).name, "mine");
  EXPECT_EQ(read_choice_task(sample("piqa"), 2).questions.size(), 2U);
}

TEST(ChoiceTasks, TextOperations) {
  EXPECT_EQ(without_wikihow_marks("  Stop [title] Go [step] on [substeps]now  "), "Stop. Go on now");
  EXPECT_EQ(without_wikihow_marks("a [b [c] d] e [open"), "a d] e [open");
  EXPECT_EQ(without_wikihow_marks("a [b\nc] d"), "a [b\nc] d");
  EXPECT_EQ(without_wikihow_marks("a   b"), "a  b");  // pairs of spaces, from the left
  EXPECT_EQ(capitalized("heLLO World"), "Hello world");
  EXPECT_EQ(character_count("na\xc3\xafve"), 5);
  EXPECT_EQ(stripped("\xe2\x80\x83 a b \n"), "a b");
}

TEST(ChoiceTasks, ErrorsNameFileLineAndField) {
  const std::string path = (fs::temp_directory_path() / fmt::format("egmla_tasks_{}.jsonl", ::getpid())).string();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", ": holds no question"},
      {"\n\n[1]\n", ":3: found \"[1]\"; expected a JSON object"},
      {"{\"a\": 1}\n", ":1: the fields a fit no known task"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": 2})", ":1: \"answer\" is 2; expected a number from 0 to 1"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": "d"})", ":1: \"answer\" is \"d\"; expected its index"},
      {R"({"context": "a", "choices": "b", "answer": 0})", ":1: \"choices\" is \"b\"; expected a list of strings"},
      {R"({"context": 7, "choices": ["b"], "answer": 0})", ":1: \"context\" is 7; expected a string"},
      {R"({"context": "a", "choices": ["b", ""], "answer": 0})", ":1: a choice is empty"},
      {R"({"goal": "a", "sol1": "b", "sol2": "c"})", ":1: \"label\" is nothing; expected a number from 0 to 1"},
      {R"({"sentence": "a", "option1": "b", "option2": "c", "answer": "1"})", "expected a sentence with a blank"},
      {R"({"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "C"})", "the label of a choice"},
  };
  for (const auto& [text, part] : cases) {
    write_file(path, text);
    try {
      read_choice_task(path);
      ADD_FAILURE() << "accepted: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).rfind(path, 0), 0U) << error.what();
    }
  }
  fs::remove(path);
}

TEST(Continuations, PartWhereTheHarnessDoes) {
  const Tokenizer tokenizer = unigram_tokenizer();
  const auto parts = [&](const char* context, const char* continuation) {
    const Continuation found = encode_continuation(tokenizer, context, continuation);
    return std::pair(found.context, found.ids);
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(parts("xy", " ab"), std::pair(Ids({'x', 'y'}), Ids({kSpaceA, 'b'})));
  // White space moves over, and may become part of a token there.
  EXPECT_EQ(parts("x ", "ab"), std::pair(Ids({'x'}), Ids({kSpaceA, 'b'})));
  EXPECT_EQ(parts("", "ab"), std::pair(Ids({kEnd}), Ids({'a', 'b'})));
  EXPECT_EQ(parts(" ", "b"), std::pair(Ids({kEnd}), Ids({' ', 'b'})));
}

// Padding, batches, equal inputs and chunks change nothing: each score is the sum of the model's own losses.
TEST(Continuations, ScoresAreTheModelsLosses) {
  for (const char* const name : {"mha", "egmla"}) {
    const ModelConfig config = variant(name).model;  // 64 positions
    Context context;
    auto model = build(config, context, DType::f64);
    std::vector<Continuation> all;
    for (uint64_t i = 0; i < 12; ++i) {
      const auto given = static_cast<int64_t>(1 + 7 * i), wanted = static_cast<int64_t>(1 + i % 4);
      all.push_back({random_ids(given, config.vocab_size, 3 * i), random_ids(wanted, config.vocab_size, 3 * i + 1)});
    }
    all.push_back({all[4].context, {5}});  // one input, two continuations
    all.push_back({all[4].context, {6}});
    const auto scores = score_continuations(*model, all, {.batch_tokens = 160, .greedy = true});
    for (size_t i = 0; i < all.size(); ++i) {
      std::vector<int32_t> ids = all[i].context;
      ids.insert(ids.end(), all[i].ids.begin(), all[i].ids.end());
      if (ids.size() > 65) ids.erase(ids.begin(), ids.end() - 65);
      const auto T = std::ssize(ids) - 1;
      const std::vector<double> losses = token_losses(*model, make_batch(context, ids, 1, T));
      double sum = 0;
      for (size_t t = losses.size() - all[i].ids.size(); t < losses.size(); ++t) sum -= losses[t];
      EXPECT_NEAR(scores[i].log_likelihood, sum, 1e-9) << name << " " << i;
    }
  }
}

TEST(Continuations, GreedyOnlyWhereEachIdIsTheMostProbable) {
  const ModelConfig config = variant("mla").model;
  Context context;
  auto model = build(config, context, DType::f64);
  const std::vector<int32_t> prompt = random_ids(9, config.vocab_size, 5);
  const std::vector<int32_t> best = generate(*model, prompt, {.max_new_tokens = 3, .sampling = {.temperature = 0}});
  std::vector<int32_t> other = best;
  other.back() = (other.back() + 1) % static_cast<int32_t>(config.vocab_size);
  const auto scores =
      score_continuations(*model, {{prompt, best}, {prompt, other}, {prompt, {other.back()}}}, {.greedy = true});
  EXPECT_TRUE(scores[0].greedy);
  EXPECT_FALSE(scores[1].greedy);
  EXPECT_EQ(scores[2].greedy, other.back() == best.front());
  EXPECT_GT(scores[0].log_likelihood, scores[1].log_likelihood);
}

// P(" a") = 0.743 and 0.001 for every byte, so a continuation with n bytes beside " a" has n ln 0.001 (+ ln 0.743).
TEST(ChoiceTasks, ResultsWorkedOutByHand) {
  const std::string folder = (fs::temp_directory_path() / fmt::format("egmla_choices_{}", ::getpid())).string();
  fs::create_directories(folder);
  write_unigram_model(folder + "/model.h5", thousand());
  std::string files;
  const std::vector<std::string> layouts = {"choices",    "hellaswag", "arc",  "piqa",
                                            "winogrande", "siqa",      "mmlu", "lambada"};
  for (const std::string& layout : layouts) files += " '" + sample(layout) + "'";
  const Outcome outcome = egmla_command(fmt::format("eval '{}/model.h5' --json --tasks {}", folder, files));
  fs::remove_all(folder);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto tasks = nlohmann::json::parse(outcome.out)["tasks"];
  ASSERT_EQ(tasks.size(), layouts.size());
  const auto row = [&](const std::string& name) {
    return tasks[static_cast<size_t>(std::find(layouts.begin(), layouts.end(), name) - layouts.begin())];
  };
  // 1: " bb" 3 L, " a" ln 0.743, " cccc" 5 L: right, right. 2: " bb" 3 L / 2 = 1.5 L, eight c 9 L / 8: wrong, right.
  EXPECT_EQ(row("choices")["acc"], 0.5);
  EXPECT_EQ(row("choices")["acc_norm"], 1.0);
  EXPECT_NEAR(row("choices")["acc_stderr"], 0.5, 1e-12);  // sqrt(0.5 * 0.5 / (2 - 1))
  // 1: bytes beside " a": 7, 15, 17, and 3 for " a b.": right, right (3 L / 4 against 7 L / 6).
  // 2: "  Go." 5 L / 4 characters, " Run far." 9 L / 8: wrong, right.
  EXPECT_EQ(row("hellaswag")["acc"], 0.5);
  EXPECT_EQ(row("hellaswag")["acc_norm"], 1.0);
  // 1: " iron" 5 L / 4, " a cork" 5 L + ln 0.743: wrong by its logarithm, right by 5.04 L / 6.
  // 2: " ice" 4 L / 3, " snow" 5 L / 4, " the sun" 8 L / 7: wrong, right.
  EXPECT_EQ(row("arc")["acc"], 0.0);
  EXPECT_EQ(row("arc")["acc_norm"], 1.0);
  // 1: " a key" 4 L + ln 0.743 against " sing" 5 L: right, right. 2: " bury it" 8 L / 7, " towel" 6 L / 5: wrong,
  // right. 3: " bread knife" 12 L / 11, " pen" 4 L / 3: wrong, right.
  EXPECT_NEAR(row("piqa")["acc"], 1.0 / 3, 1e-12);
  EXPECT_EQ(row("piqa")["acc_norm"], 1.0);
  EXPECT_NEAR(row("piqa")["acc_stderr"], 1.0 / 3, 1e-12);  // sqrt(2 / 9 / 2)
  // Equal continuations: the first option is taken.
  EXPECT_EQ(row("winogrande")["acc"], 0.5);
  EXPECT_FALSE(row("winogrande").contains("acc_norm"));
  // 1: 6 L, " a bit full" 9 L + ln 0.743, 6 L: wrong. 2: " sing" and " look" 5 L: the first, wrong.
  EXPECT_EQ(row("siqa")["acc"], 0.0);
  // Letters are equal: A is taken.
  EXPECT_EQ(row("mmlu")["acc"], 0.5);
  // " a" is one token and the most probable; " b" is two. exp((0.297059 + 2 * 6.907755) / 2) = 1 / sqrt(0.743) * 1000.
  EXPECT_EQ(row("lambada")["acc"], 0.5);
  EXPECT_NEAR(row("lambada")["perplexity"], 1000 / std::sqrt(0.743), 0.1);
}

}  // namespace
}  // namespace egmla::test
