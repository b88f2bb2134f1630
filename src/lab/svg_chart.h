// A line chart as inline SVG. Colours and type come from the page's style sheet through classes: c0 (muted) and c1 ...
// c8 for series, so that light, dark and print differ in CSS alone.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace egmla {

constexpr int kChartColors = 8;

struct Point {
  double x = 0.0;
  double y = 0.0;
};

// dotted: a line with a dot at every point; dots: no line, the label beside the last point
enum class SeriesStyle : uint8_t { line, faint, dotted, dots };

struct Series {
  std::string label = {};          // stands at the line's end; empty: none
  std::vector<Point> points = {};  // by rising x; non-finite values break the line
  int color = 1;                   // 0 ... kChartColors
  SeriesStyle style = SeriesStyle::line;
  std::vector<double> errors = {};  // half the length of a bar at each point; empty: no bars
};

struct ReferenceLine {
  double y = 0.0;
  std::string label;
};

struct Chart {
  std::string description;  // for screen readers
  std::string x_label, y_label;
  std::vector<Series> series;  // later ones lie on top
  std::optional<ReferenceLine> reference;
  std::optional<double> y_max;  // higher values are cut off
  std::optional<double> y_min;
  std::function<std::string(double)> x_text, y_text;  // tick labels
  bool x_log = false;                                 // positive x alone
  int width = 480;
  int height = 280;
};

std::string svg_chart(const Chart& chart);

// About `count` round numbers (1, 2 or 5 times a power of ten) within [low, high]; more where they would be fewer than
// three.
std::vector<double> nice_ticks(double low, double high, int count);

// At most about `count` of 1, 2 and 5 times the powers of ten within [low, high], both positive.
std::vector<double> log_ticks(double low, double high, int count);

// At most `count` points: means over equal numbers of neighbours. The last one stands at the last x.
std::vector<Point> thin_out(const std::vector<Point>& points, size_t count);

// Text made safe for HTML and SVG; bytes that are no UTF-8 become U+FFFD.
std::string escape_html(const std::string& text);

}  // namespace egmla
