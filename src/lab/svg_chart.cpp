#include "lab/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace egmla {
namespace {

constexpr double kFont = 12.0;    // matches the style sheet's svg text
constexpr double kLetter = 0.58;  // mean width of a letter in units of the font's size
constexpr double kBoldLetter = 0.68;
constexpr double kLabelGap = 14.0;  // least distance between labels at line ends
constexpr double kTop = 26.0, kBottom = 40.0;

double text_width(const std::string& text, double letter = kLetter) {
  return letter * kFont * static_cast<double>(text.size());
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // Never empty, so that a single point or no point at all still has axes.
  void widen(double fraction) {
    if (low > high) low = 0.0, high = 1.0;
    const double margin = high > low ? fraction * (high - low) : std::max(0.05 * std::abs(high), 1e-9);
    low -= margin;
    high += margin;
  }
};

// Where a chart's parts lie, in SVG units.
class Layout {
 public:
  explicit Layout(const Chart& chart) : chart_(chart) {
    for (const Series& series : chart.series) {
      for (size_t i = 0; i < series.points.size(); ++i) {
        const Point& point = series.points[i];
        if (!std::isfinite(point.y)) continue;
        x_.include(along(point.x));
        const double error = i < series.errors.size() ? series.errors[i] : 0.0;
        y_.include(point.y - error);
        y_.include(point.y + error);
      }
    }
    if (chart.y_max && *chart.y_max > y_.low) y_.high = std::min(y_.high, *chart.y_max);
    if (chart.reference) y_.include(chart.reference->y);
    if (!chart.x_log) x_.include(0.0);
    if (chart.x_log || x_.low == x_.high) x_.widen(chart.x_log ? 0.06 : 0.0);
    y_.widen(0.05);
    if (chart.y_min) y_.low = *chart.y_min;
    y_ticks_ = nice_ticks(y_.low, y_.high, chart.height > 330 ? 7 : 5);
    double tick_width = 0.0, label_width = 0.0;
    for (double tick : y_ticks_) tick_width = std::max(tick_width, text_width(chart.y_text(tick)));
    for (const Series& series : chart.series) {
      if (series.style != SeriesStyle::dots) label_width = std::max(label_width, text_width(series.label, kBoldLetter));
    }
    left = tick_width + 10.0;
    right = chart.width - (label_width > 0.0 ? label_width + 12.0 : 14.0);
    bottom = chart.height - kBottom;
    const int count = static_cast<int>((right - left) / 75.0);
    x_ticks_ = chart.x_log ? log_ticks(std::pow(10.0, x_.low), std::pow(10.0, x_.high), count)
                           : nice_ticks(x_.low, x_.high, count);
  }

  double x(double value) const { return left + (along(value) - x_.low) / (x_.high - x_.low) * (right - left); }
  double y(double value) const { return bottom - (value - y_.low) / (y_.high - y_.low) * (bottom - top); }
  const std::vector<double>& x_ticks() const { return x_ticks_; }
  const std::vector<double>& y_ticks() const { return y_ticks_; }

  double left = 0.0, right = 0.0, top = kTop, bottom = 0.0;

 private:
  // A place on the axis: the value, or its logarithm.
  double along(double value) const { return chart_.x_log ? std::log10(value) : value; }

  const Chart& chart_;
  Range x_, y_;
  std::vector<double> x_ticks_, y_ticks_;
};

std::string text_at(double x, double y, const char* anchor, const std::string& classes, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>", x, y, anchor, classes,
                     escape_html(text));
}

std::string axes(const Chart& chart, const Layout& layout) {
  std::string out;
  for (double tick : layout.y_ticks()) {
    const double y = layout.y(tick);
    out += fmt::format("<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", layout.left,
                       layout.right, y, y);
    out += text_at(layout.left - 6.0, y + 4.0, "end", "tick", chart.y_text(tick));
  }
  for (double tick : layout.x_ticks()) {
    const double x = layout.x(tick);
    out += fmt::format("<line class=\"axis\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", x, x,
                       layout.bottom, layout.bottom + 4.0);
    out += text_at(x, layout.bottom + 17.0, "middle", "tick", chart.x_text(tick));
  }
  out += fmt::format("<line class=\"axis\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", layout.left,
                     layout.right, layout.bottom, layout.bottom);
  out += text_at(0.0, 13.0, "start", "label", chart.y_label);
  return out + text_at(layout.right, chart.height - 6.0, "end", "label", chart.x_label);
}

std::string path_of(const Series& series, const Layout& layout) {
  std::string path;
  bool pen_down = false;
  for (const Point& point : series.points) {
    if (!std::isfinite(point.y)) {
      pen_down = false;
      continue;
    }
    path += fmt::format("{}{:.1f} {:.1f}", pen_down ? 'L' : 'M', layout.x(point.x), layout.y(point.y));
    pen_down = true;
  }
  return path;
}

std::string line_of(const Series& series, const Layout& layout) {
  const char* style = series.style == SeriesStyle::faint ? " faint" : "";
  const bool lone = series.style == SeriesStyle::dots, dotted = series.style == SeriesStyle::dotted || lone;
  std::string out = fmt::format("<g class=\"c{}{}\">", series.color, style);
  if (!lone) out += "<path d=\"" + path_of(series, layout) + "\"/>";
  const double radius = lone ? 4.5 : series.points.size() > 60 ? 1.4 : 2.4;
  for (size_t i = 0; i < std::min(series.errors.size(), series.points.size()); ++i) {
    const Point& point = series.points[i];
    if (!std::isfinite(point.y) || !(series.errors[i] > 0.0)) continue;
    const double x = layout.x(point.x), low = layout.y(point.y - series.errors[i]);
    const double high = layout.y(point.y + series.errors[i]);
    out += fmt::format(
        "<path class=\"bar\" d=\"M{0:.1f} {1:.1f}V{2:.1f}M{3:.1f} {1:.1f}H{4:.1f}M{3:.1f} {2:.1f}H{4:.1f}\"/>", x, low,
        high, x - 4.0, x + 4.0);
  }
  for (const Point& point : series.points) {
    if (!dotted || !std::isfinite(point.y)) continue;
    out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"/>", layout.x(point.x), layout.y(point.y), radius);
  }
  return out + "</g>";
}

struct EndLabel {
  double x = 0.0, y = 0.0;
  const Series* series = nullptr;
};

// Labels at the lines' ends: beside the chart, or where a line ends early. Pushed apart downwards, then back up where
// they passed the bottom.
std::string end_labels(const Chart& chart, const Layout& layout) {
  std::vector<EndLabel> labels;
  for (const Series& series : chart.series) {
    const auto last = std::find_if(series.points.rbegin(), series.points.rend(),
                                   [](const Point& point) { return std::isfinite(point.y); });
    if (series.label.empty() || series.style == SeriesStyle::dots || last == series.points.rend()) continue;
    const double x = layout.x(last->x), early = layout.right - 0.12 * (layout.right - layout.left);
    labels.push_back(
        {(x < early ? x : layout.right) + 7.0, std::clamp(layout.y(last->y), layout.top, layout.bottom), &series});
  }
  std::stable_sort(labels.begin(), labels.end(), [](const EndLabel& a, const EndLabel& b) { return a.y < b.y; });
  for (size_t i = 1; i < labels.size(); ++i) labels[i].y = std::max(labels[i].y, labels[i - 1].y + kLabelGap);
  double limit = layout.bottom;
  for (size_t i = labels.size(); i-- > 0; limit = labels[i].y - kLabelGap) labels[i].y = std::min(labels[i].y, limit);
  std::string out;
  for (const EndLabel& label : labels) {
    out +=
        text_at(label.x, label.y + 4.0, "start", fmt::format("end halo t{}", label.series->color), label.series->label);
  }
  return out;
}

// Labels beside lone points: to the right, or to the left in a chart's last third; pushed down where they would
// overlap.
std::string point_labels(const Chart& chart, const Layout& layout) {
  struct Label {
    double x = 0.0, y = 0.0, from = 0.0, to = 0.0;
    const Series* series = nullptr;
  };
  std::vector<Label> labels;
  for (const Series& series : chart.series) {
    if (series.label.empty() || series.style != SeriesStyle::dots || series.points.empty()) continue;
    const Point& last = series.points.back();
    if (!std::isfinite(last.y) || layout.y(last.y) < layout.top - 4.0) continue;
    const double x = layout.x(last.x), width = text_width(series.label, kBoldLetter);
    const bool leftwards = x > layout.left + 0.66 * (layout.right - layout.left);
    const double at = x + (leftwards ? -9.0 : 9.0);
    labels.push_back({at, layout.y(last.y), leftwards ? at - width : at, leftwards ? at : at + width, &series});
  }
  std::stable_sort(labels.begin(), labels.end(), [](const Label& a, const Label& b) { return a.y < b.y; });
  std::string out;
  for (size_t i = 0; i < labels.size(); ++i) {
    Label& label = labels[i];
    for (size_t j = 0; j < i; ++j) {
      if (labels[j].from < label.to && label.from < labels[j].to) label.y = std::max(label.y, labels[j].y + kLabelGap);
    }
    out += text_at(label.x, label.y + 4.0, label.from == label.x ? "start" : "end",
                   fmt::format("end halo t{}", label.series->color), label.series->label);
  }
  return out;
}

std::string reference_of(const ReferenceLine& reference, const Layout& layout) {
  const double y = layout.y(reference.y);
  return fmt::format("<line class=\"reference\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", layout.left,
                     layout.right, y, y) +
         text_at(layout.right, y - 5.0, "end", "label halo", reference.label);
}

}  // namespace

std::vector<double> nice_ticks(double low, double high, int count) {
  const double rough = (high - low) / std::max(count, 1);
  if (!(rough > 0.0) || !std::isfinite(rough)) return {};
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double lead = rough / power;
  const double step = power * (lead > 5.0 ? 10.0 : lead > 2.0 ? 5.0 : lead > 1.0 ? 2.0 : 1.0);
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) ticks.push_back(i * step + 0.0);
  return ticks.size() < 3 && count < 8 ? nice_ticks(low, high, count + 2) : ticks;
}

std::vector<double> log_ticks(double low, double high, int count) {
  if (!(low > 0.0) || !(high > low) || !std::isfinite(high)) return {};
  const double decades = std::log10(high / low);
  // Every step-th power of ten, or within each decade two or three numbers where there is room.
  const double step = std::max(1.0, std::ceil(decades / std::max(count, 1)));
  std::vector<double> leads = {1.0};
  if (decades * 3.0 <= count) {
    leads = {1.0, 2.0, 5.0};
  } else if (decades * 2.0 <= count) {
    leads = {1.0, 3.0};
  }
  std::vector<double> ticks;
  for (double power = std::floor(std::log10(low)); power <= std::log10(high); power += step) {
    for (double lead : leads) {
      const double tick = lead * std::pow(10.0, power);
      if (tick >= low * (1.0 - 1e-9) && tick <= high * (1.0 + 1e-9)) ticks.push_back(tick);
    }
  }
  return ticks.size() < 2 ? nice_ticks(low, high, count) : ticks;
}

std::vector<Point> thin_out(const std::vector<Point>& points, size_t count) {
  if (points.size() <= count || count == 0) return points;
  std::vector<Point> out;
  for (size_t group = 0; group < count; ++group) {
    const size_t begin = group * points.size() / count, end = (group + 1) * points.size() / count;
    Point sum;
    double used = 0.0;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(points[i].y)) continue;
      sum = {sum.x + points[i].x, sum.y + points[i].y};
      ++used;
    }
    if (used > 0.0) out.push_back({sum.x / used, sum.y / used});
  }
  if (!out.empty()) out.back().x = points.back().x;
  return out;
}

std::string svg_chart(const Chart& chart) {
  const Layout layout(chart);
  std::string out = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">", chart.width, chart.height,
                                escape_html(chart.description));
  out += axes(chart, layout);
  // A nested svg in the same coordinates cuts off what lies outside the axes.
  const double x = layout.left, y = layout.top - 4.0, width = layout.right - x + 4.0, height = layout.bottom - y;
  out += fmt::format(
      "<svg x=\"{0:.1f}\" y=\"{1:.1f}\" width=\"{2:.1f}\" height=\"{3:.1f}\" viewBox=\"{0:.1f} {1:.1f} {2:.1f} "
      "{3:.1f}\">",
      x, y, width, height);
  for (const Series& series : chart.series) out += line_of(series, layout);
  out += "</svg>";
  if (chart.reference) out += reference_of(*chart.reference, layout);
  return out + end_labels(chart, layout) + point_labels(chart, layout) + "</svg>";
}

std::string escape_html(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xc2 && lead < 0xe0 ? 2
                          : lead >= 0xe0 && lead < 0xf0 ? 3
                          : lead >= 0xf0 && lead < 0xf5 ? 4
                                                        : 0;
    bool valid = length > 0 && i + length <= text.size();
    for (size_t k = 1; valid && k < length; ++k) valid = (static_cast<unsigned char>(text[i + k]) & 0xc0) == 0x80;
    if (!valid || (lead < 0x20 && lead != '\n' && lead != '\t')) {
      out += "\xef\xbf\xbd";
      ++i;
      continue;
    }
    switch (text[i]) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += text.substr(i, length);
    }
    i += length;
  }
  return out;
}

}  // namespace egmla
