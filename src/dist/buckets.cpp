#include "dist/buckets.h"

#include <algorithm>
#include <utility>

namespace egmla {

std::vector<Bucket> plan_buckets(ParameterStore& store, int64_t elements) {
  // Backward runs against the order of declaration: a bucket is complete with its first declared parameter.
  std::vector<std::pair<int64_t, Bucket>> buckets;  // by that parameter's number
  const std::vector<PlacedParameter> places = store.places();
  for (int group = 0; group < kParameterGroups; ++group) {
    bool open = false;
    for (auto number = static_cast<int64_t>(places.size()) - 1; number >= 0; --number) {
      const PlacedParameter& place = places[static_cast<size_t>(number)];
      if (place.group != static_cast<ParameterGroup>(group)) continue;
      if (!open || buckets.back().second.span.size + place.span.size > elements)
        buckets.push_back({number, {{place.span.begin, 0}, place.group, {}}});
      open = true;
      auto& [first, bucket] = buckets.back();
      first = number;
      bucket.span = {place.span.begin, bucket.span.size + place.span.size};
      bucket.parameters.insert(bucket.parameters.end(), place.trained.begin(), place.trained.end());
    }
  }
  std::stable_sort(buckets.begin(), buckets.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<Bucket> out;
  for (auto& [first, bucket] : buckets) out.push_back(std::move(bucket));
  return out;
}

std::vector<OwnPart> own_parts(const std::vector<Bucket>& buckets, const Rank& rank) {
  std::vector<OwnPart> parts;
  int64_t at = 0;
  for (auto bucket = buckets.rbegin(); bucket != buckets.rend(); ++bucket) {
    const int64_t n = bucket->span.size, begin = part_begin(n, rank.number, rank.count);
    const Span own{bucket->span.begin + begin, part_begin(n, rank.number + 1, rank.count) - begin};
    parts.push_back({own, bucket->group, at});
    at += own.size;
  }
  return parts;
}

std::vector<OwnPart> parts_to_update(const std::vector<Bucket>& buckets, const Rank& rank, int64_t zero_stage) {
  if (zero_stage == 0 || rank.count == 1) return {};
  return own_parts(buckets, rank);
}

}  // namespace egmla
