// The report: its charts' parts, and pages of one run and of forty.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "core/check.h"
#include "core/files.h"
#include "lab/report.h"
#include "lab/report_data.h"
#include "lab/svg_chart.h"
#include "train/metrics.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

class ReportTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = (fs::temp_directory_path() / fmt::format("egmla_{}_{}", info->name(), ::getpid())).string();
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  // A run of `steps` steps whose loss falls to `final_loss`; validated at every tenth step.
  std::string make_run(const std::string& name, double final_loss, int64_t steps, bool validated = true) {
    const std::string dir = directory_ + "/" + name;
    fs::create_directories(dir);
    MetricsLog log(dir + "/metrics.jsonl", 0);
    for (int64_t step = 1; step <= steps; ++step) {
      const double x = static_cast<double>(step) / static_cast<double>(steps);
      MetricsRow row{.step = step, .tokens = step * 1000, .lr = 1e-3, .grad_norm = 0.5, .tokens_per_s = 2e4};
      row.loss = final_loss + 5.0 * std::exp(-20.0 * x);
      row.time = static_cast<double>(step) * 0.05;
      if (validated && step % 10 == 0) row.val_loss = row.loss + 0.25;
      log.append(row);
    }
    return dir;
  }

  std::string report(const std::vector<std::string>& dirs, ReportFormat format = ReportFormat::html) {
    const std::string out = directory_ + "/report/out";
    write_report(dirs, out, format);
    return read_file(out);
  }

  std::string directory_;
};

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(SvgChart, TicksAreRoundAndWithin) {
  EXPECT_EQ(nice_ticks(0.0, 10.0, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(nice_ticks(3.3, 6.6, 6), (std::vector<double>{4, 5, 6}));
  EXPECT_EQ(nice_ticks(-1.0, 1.0, 4), (std::vector<double>{-1, -0.5, 0, 0.5, 1}));
  EXPECT_TRUE(nice_ticks(1.0, 1.0, 5).empty());
  EXPECT_TRUE(nice_ticks(0.0, std::numeric_limits<double>::infinity(), 5).empty());
}

TEST(SvgChart, TicksOfALogarithmicAxisArePowersOfTenOrRoundBetweenThem) {
  EXPECT_EQ(log_ticks(1.0, 1e6, 3), (std::vector<double>{1, 100, 1e4, 1e6}));
  EXPECT_EQ(log_ticks(900.0, 13000.0, 8), (std::vector<double>{1000, 2000, 5000, 10000}));
  EXPECT_EQ(log_ticks(120.0, 160.0, 4), (std::vector<double>{120, 130, 140, 150, 160}));
  EXPECT_TRUE(log_ticks(0.0, 10.0, 4).empty());
}

TEST(SvgChart, ThinningKeepsMeansAndTheEnd) {
  std::vector<Point> points;
  for (int i = 1; i <= 1000; ++i) points.push_back({static_cast<double>(i), static_cast<double>(2 * i)});
  const std::vector<Point> thin = thin_out(points, 10);
  ASSERT_EQ(thin.size(), 10u);
  EXPECT_DOUBLE_EQ(thin[0].x, 50.5);
  EXPECT_DOUBLE_EQ(thin[0].y, 101.0);
  EXPECT_DOUBLE_EQ(thin[9].x, 1000.0);
  EXPECT_EQ(thin_out(points, 1000).size(), 1000u);
  points[3].y = std::nan("");
  EXPECT_TRUE(std::isfinite(thin_out(points, 10)[0].y));
}

TEST(SvgChart, EscapesMarkupAndBrokenBytes) {
  EXPECT_EQ(escape_html("<a href=\"x\">&</a>"), "&lt;a href=&quot;x&quot;&gt;&amp;&lt;/a&gt;");
  EXPECT_EQ(escape_html("caf\u00e9 \U0001f600"), "caf\u00e9 \U0001f600");
  EXPECT_EQ(escape_html("a\xff\xc3(\x01"), "a\ufffd\ufffd(\ufffd");
  EXPECT_EQ(escape_html("cut \xe2\x82"), "cut \ufffd\ufffd");
}

Chart chart_of(std::vector<Point> points) {
  Chart chart;
  chart.x_text = chart.y_text = [](double value) { return fmt::format("{:g}", value); };
  chart.series = {{"line", std::move(points), 1, SeriesStyle::line}};
  return chart;
}

TEST(SvgChart, NonFiniteValuesBreakTheLine) {
  const double nan = std::nan("");
  const std::string svg = svg_chart(chart_of({{0, 1}, {1, 2}, {2, nan}, {3, 1}, {4, 2}}));
  const size_t begin = svg.find(" d=\"") + 4;
  const std::string path = svg.substr(begin, svg.find('"', begin) - begin);
  EXPECT_EQ(count(path, "M"), 2u);
  EXPECT_EQ(count(path, "L"), 2u);
  EXPECT_FALSE(has(svg, "nan"));
}

TEST(SvgChart, DegenerateDataStillDraws) {
  for (const auto& points : {std::vector<Point>{}, std::vector<Point>{{5, 3}}, std::vector<Point>{{0, 0}, {0, 0}},
                             std::vector<Point>{{1, std::nan("")}}}) {
    const std::string svg = svg_chart(chart_of(points));
    EXPECT_EQ(count(svg, "<svg"), count(svg, "</svg>"));
    EXPECT_FALSE(has(svg, "nan")) << svg;
    EXPECT_FALSE(has(svg, "inf")) << svg;
  }
}

TEST(SvgChart, LabelsKeepTheirDistance) {
  Chart chart = chart_of({{0, 1}, {1, 2}});
  for (int i = 0; i < 6; ++i) chart.series.push_back({fmt::format("s{}", i), {{0, 1}, {1, 1.001 * i}}, 2, {}});
  const std::string svg = svg_chart(chart);
  std::vector<double> heights;
  for (size_t at = svg.find("class=\"end"); at != std::string::npos; at = svg.find("class=\"end", at + 1)) {
    heights.push_back(std::stod(svg.substr(svg.rfind("y=\"", at) + 3)));
  }
  ASSERT_EQ(heights.size(), 7u);
  for (size_t i = 1; i < heights.size(); ++i) EXPECT_GE(heights[i] - heights[i - 1], 13.9);
}

TEST_F(ReportTest, OneRunStatesItsLossAgainstTheUnigramEntropy) {
  const std::string dir = make_run("bible", 2.0, 400);
  write_file(dir + "/stats.json", R"({"val_unigram_entropy_nats": 6.25, "parameters": 1234567})");
  write_file(dir + "/config.yaml", "run: {name: bible}\nmodel: {hidden_size: 64}\n");
  write_file(dir + "/samples.txt", "And <God> said");
  const std::string page = report({dir});
  EXPECT_TRUE(has(page, "<title>bible</title>"));
  EXPECT_TRUE(has(page, "4.00 nats below the unigram entropy of the validation text (6.25)"));
  EXPECT_TRUE(has(page, "class=\"reference\""));
  EXPECT_TRUE(has(page, "unigram entropy 6.25"));
  EXPECT_TRUE(has(page, "<td>2.2500</td>"));
  EXPECT_TRUE(has(page, "<td>1.23M</td>"));
  EXPECT_TRUE(has(page, ">validation</text>"));
  EXPECT_TRUE(has(page, "And &lt;God&gt; said"));
  EXPECT_TRUE(has(page, "hidden_size: 64"));
  for (const char* title : {">Loss<", ">Learning rate<", ">Gradient norm<", ">Throughput<"}) {
    EXPECT_TRUE(has(page, title)) << title;
  }
}

TEST_F(ReportTest, NeedsNoNetworkAndNoScript) {
  const std::string page = report({make_run("a", 2.0, 50), make_run("b", 1.5, 50)});
  for (const char* part : {"http:", "https:", "<script", "<link", "src=", "url(", "@import"}) {
    EXPECT_FALSE(has(page, part)) << part;
  }
  EXPECT_TRUE(has(page, "prefers-color-scheme: dark"));
  EXPECT_TRUE(has(page, "name=\"viewport\""));
}

TEST_F(ReportTest, BareMetricsAreEnough) {
  const std::string page = report({make_run("bare", 3.0, 1, false)});
  EXPECT_TRUE(has(page, "The training loss ends at 3.000"));
  EXPECT_FALSE(has(page, "class=\"reference\""));
  EXPECT_FALSE(has(page, "<h2>Samples"));
  EXPECT_FALSE(has(page, "Validation loss</th>"));
}

TEST_F(ReportTest, RunsWithoutOneFiniteLossAreSaidToHaveNone) {
  const std::string dir = make_run("nan", 1.0, 3, false);
  write_file(dir + "/metrics.jsonl", "{\"step\":1,\"tokens\":10,\"loss\":null}\n{\"step\":2,\"tokens\":20}\n");
  const std::string page = report({dir});
  EXPECT_TRUE(has(page, "No run has a finite loss."));
  EXPECT_FALSE(has(page, "\"nan"));
}

TEST_F(ReportTest, FortyRunsAreOrderedAndTheBestColoured) {
  std::vector<std::string> dirs;
  for (int i = 0; i < 40; ++i) {
    dirs.push_back(make_run(fmt::format("run{:02d}", i), 4.0 - 0.05 * i, 60));
    write_file(dirs.back() + "/config.yaml", fmt::format("run: {{name: r{:02d}}}\ntrain: {{lr: {}, seed: 1}}\n", i, i));
  }
  const std::string page = report(dirs);
  EXPECT_TRUE(has(page, "<title>40 runs</title>"));
  EXPECT_TRUE(has(page, "Best of 40 runs is r39"));
  EXPECT_LT(page.find("<td><span class=\"key b1\"></span>r39"), page.find("<td><span class=\"key b2\"></span>r38"));
  EXPECT_TRUE(has(page, "<td><span class=\"key b0\"></span>r00"));
  EXPECT_TRUE(has(page, "32 more"));
  EXPECT_TRUE(has(page, "<th>train.<wbr>lr</th>"));
  EXPECT_FALSE(has(page, "<th>train.<wbr>seed</th>"));
  // Two loss charts in two widths, loss against time, three small ones, forty lines in each.
  EXPECT_EQ(count(page, "<path d="), 8u * 40u);
  EXPECT_LT(page.size(), 2u << 20);
}

TEST_F(ReportTest, CostsAndCacheAreDrawnWhereStatsTellThem) {
  const std::string a = make_run("a", 2.0, 50), b = make_run("b", 1.5, 50);
  EXPECT_FALSE(has(report({a, b}), "training FLOPs"));
  const auto write_stats = [](const std::string& dir, int cache, const char* hardware) {
    write_file(dir + "/stats.json", fmt::format(R"({{"parameters": 5000, "gate_tables": 1000, "cache_elements": {},
      "flops_per_token": 3e10, "hardware": "{}", "commit": "abc123"}})",
                                                cache, hardware));
  };
  write_stats(a, 960, "an old CPU");
  write_stats(b, 960, "a GPU");
  const std::string same = report({a, b});
  for (const char* part : {">Validation loss against training FLOPs<", ">Validation loss against wall time<", "1e15",
                           "<td>960</td>", "<td>an old CPU</td>", "<td>abc123</td>"}) {
    EXPECT_TRUE(has(same, part)) << part;
  }
  EXPECT_FALSE(has(same, ">Final loss against cache<"));  // one cache: no trade-off
  write_stats(a, 3840, "an old CPU");
  const std::string page = report({a, b});
  EXPECT_TRUE(has(page, ">Final loss against cache<"));
  EXPECT_TRUE(has(page, "cached elements per token"));
  EXPECT_EQ(count(page, "r=\"4.5\""), 4u);  // in two widths
}

TEST_F(ReportTest, SeedsOfOneSettingShareColourNameAndMean) {
  std::vector<std::string> dirs;
  for (const auto& [name, latent, seed, loss] :
       {std::tuple("kv64-seed_1", 64, 1, 1.0), std::tuple("kv64-seed_2", 64, 2, 1.5),
        std::tuple("mha-seed_1", 0, 1, 2.0), std::tuple("kv64-again", 64, 2, 1.5)}) {
    dirs.push_back(make_run(name, loss, 100));
    write_file(dirs.back() + "/config.yaml",
               fmt::format("run: {{name: {}, seed: {}{}}}\nmodel: {{latent: {}}}\n", name, seed,
                           seed == 2 ? ", fold_gate: auto" : "", latent));  // a default, as newer versions write it
    write_file(dirs.back() + "/stats.json", fmt::format(R"({{"cache_elements": {}}})", 100 + latent));
  }
  const auto runs = load_runs(dirs);
  const auto settings = settings_of(runs);
  ASSERT_EQ(settings.size(), 2U);
  EXPECT_EQ(settings[0].name, "kv64");
  EXPECT_EQ(settings[0].runs.size(), 3U);
  EXPECT_EQ(settings[0].seeds, 2U);  // a run that is there twice counts once
  EXPECT_NEAR(settings[0].loss, 1.25 + 0.25, 1e-6);
  EXPECT_NEAR(settings[0].spread.value(), 0.5 / std::sqrt(2.0), 1e-6);
  EXPECT_FALSE(settings[1].spread);
  EXPECT_EQ(settings[1].name, "mha-seed_1");
  const std::string page = report(dirs);
  EXPECT_TRUE(
      has(page, "<li><span class=\"key b1\"></span>kv64</li><li><span class=\"key b2\"></span>mha-seed_1</li>"));
  EXPECT_TRUE(has(page, "<td><span class=\"key b1\"></span>kv64</td><td>2</td>"));
  EXPECT_TRUE(has(page, "one sample standard deviation"));
  EXPECT_EQ(count(page, "class=\"bar\""), 2U);  // of one setting, in two widths
  EXPECT_FALSE(has(page, "run.<wbr>seed"));
}

TEST_F(ReportTest, PowerLawsAreDrawnFromThreeSizesOn) {
  std::vector<std::string> dirs;
  for (int size = 1; size <= 3; ++size) {
    EXPECT_FALSE(size > 1 && has(report(dirs), "power law")) << size;
    dirs.push_back(make_run(fmt::format("s{}", size), 4.0 * std::pow(2.0, -0.1 * size) - 0.25, 500));
    write_file(dirs.back() + "/config.yaml",
               fmt::format("model: {{hidden_size: {}, num_hidden_layers: 2, attention: {{type: mla}}}}\n", 64 * size));
    write_file(dirs.back() + "/stats.json",
               fmt::format(R"({{"parameters": {0}, "gate_tables": 0, "flops_per_token": {0}}})", 1000 * (1 << size)));
  }
  const std::string page = report(dirs);
  EXPECT_TRUE(has(page, ">Final loss against parameters without gate tables<"));
  EXPECT_TRUE(has(page, "mla, exponent 0.100 \u00b1 0.000"));
  EXPECT_TRUE(has(report(dirs, ReportFormat::markdown), "| mla | FLOPs of training | 3 |"));
}

TEST_F(ReportTest, ComparisonsAreDrawn) {
  const std::string dir = make_run("gated", 2.0, 50);
  EXPECT_FALSE(has(report({dir}), "Benefit"));
  const auto bin = [](int from, int tokens, double error) {
    return fmt::format(R"({{"seen_from": {}, "seen_to": null, "tokens": {}, "loss": 1.0, "other": 1.2,
      "standard_error": {}}})",
                       from, tokens, error);
  };
  write_file(dir + "/comparison.json", R"({"other": "runs/mla/checkpoints/step-1.h5", "by_count": [)" +
                                           bin(0, 5000, 0.1) + "," + bin(10, 999, 0.1) + "," + bin(100, 5000, 0.1) +
                                           "]}");
  const std::string page = report({dir});
  EXPECT_TRUE(has(page, "Benefit over mla by how often a token was seen"));
  EXPECT_EQ(count(page, "class=\"bar\""), 2U);  // one bin of note, in two widths
}

TEST_F(ReportTest, FoldersWithoutRunsArePassedOverBesideOthers) {
  const std::string run = make_run("run", 2.0, 20);
  write_file(directory_ + "/table.csv", "x\n");
  fs::create_directories(directory_ + "/failed");
  const auto runs = load_runs({run, directory_ + "/table.csv", directory_ + "/failed"});
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].name, "run");
  EXPECT_THROW(load_runs({run, directory_ + "/absent"}), Error);
}

TEST_F(ReportTest, RunsOfOneNameAreToldApart) {
  const std::string a = make_run("x/same", 2.0, 20), b = make_run("y/same", 1.0, 20);
  const auto runs = load_runs({a, b});
  EXPECT_EQ(runs[0].name, b);
  EXPECT_EQ(runs[1].name, a);
}

TEST_F(ReportTest, MarkdownHoldsTablesOfTheSameNumbers) {
  const std::string page = report({make_run("a|b", 2.0, 400), make_run("c", 1.0, 400)}, ReportFormat::markdown);
  EXPECT_TRUE(has(page, "# 2 runs"));
  EXPECT_TRUE(has(page, "| a\\|b | 400 | 400k | 2.0000 | 2.2500 |"));
  EXPECT_TRUE(has(page, "| Training loss at | 40.0k | 80.0k |"));
}

TEST_F(ReportTest, NamesWhatIsMissing) {
  const auto message_of = [&](const std::vector<std::string>& dirs) -> std::string {
    try {
      write_report(dirs, directory_ + "/out.html");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      return error.what();
    }
    return "";
  };
  EXPECT_TRUE(has(message_of({directory_}), "no metrics.jsonl there; expected a run directory"));
  write_file(directory_ + "/metrics.jsonl", "");
  EXPECT_TRUE(has(message_of({directory_}), "holds no step yet"));
  EXPECT_TRUE(has(message_of({}), "no run given"));
}

}  // namespace
}  // namespace egmla
