// Which shapes attention's Hopper kernels take, and the workspace of the backward one: plain numbers, so that memory
// can be planned where there is no GPU.
#pragma once

#include <cstdint>

namespace egmla::hopper {

constexpr int kPanel = 64;  // columns of a tile's panel in shared memory, 128 bytes
constexpr int64_t kFewestQueries = 64;

// Blocks that share a head's queries backward. They wait for each other, so all must run at once, one a multiprocessor.
constexpr int64_t blocks_of_head(int64_t length) {
  return (length + 255) / 256;
}

// `own`: the width of a key before the shared part, which must begin with a panel; 0 where there is no such part.
constexpr bool suits_shape(int64_t queries, int64_t qk, int64_t own, int64_t v) {
  return queries >= kFewestQueries && qk <= 192 && v <= 128 && own % kPanel == 0;
}

// The narrowest of the compiled widths that holds both, and the queries of one step backward.
struct WidthClass {
  int qk, v, rows;
};
constexpr WidthClass width_class(int64_t qk, int64_t v) {
  if (qk <= 64 && v <= 64) return {64, 64, 128};
  if (qk <= 96 && v <= 64) return {96, 64, 128};
  if (qk <= 128) return {128, 128, 64};
  return {192, 128, 64};
}

// Elements, of four bytes each, of the parts of the backward workspace, in this order.
struct BackwardSpace {
  int64_t sums, statistics, partials, turns;
  constexpr int64_t total() const { return sums + statistics + partials + turns; }
};

constexpr int64_t rounded_to_16_bytes(int64_t elements) {
  return (elements + 3) / 4 * 4;
}

constexpr BackwardSpace backward_space(int64_t batch, int64_t heads, int64_t key_heads, int64_t length,
                                       int64_t rope_width, WidthClass widths) {
  const int64_t padded = (length + 127) / 128 * 128;
  return {.sums = batch * heads * padded * widths.qk,
          .statistics = batch * heads * padded * 2,
          .partials = rounded_to_16_bytes(batch * key_heads * length * rope_width),
          .turns = rounded_to_16_bytes(batch * heads * padded / widths.rows + 1)};
}

}  // namespace egmla::hopper
