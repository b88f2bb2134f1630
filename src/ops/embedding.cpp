#include "kernels/embedding.h"

#include <algorithm>

#include "ops/ops.h"

namespace egmla::ops {

TokenIndex make_token_index(Context& context, const std::vector<int32_t>& ids, int64_t B, int64_t T, bool grouped) {
  const OpScope scope(context, "batch");
  TokenIndex index;
  index.ids = Tensor::from(context, {B, T}, ids);
  if (!grouped) return index;
  // Counting sort: a comparison sort of a micro-batch takes milliseconds, in which a device waits for its first kernel.
  const int32_t largest = ids.empty() ? 0 : *std::max_element(ids.begin(), ids.end());
  std::vector<int32_t> place(static_cast<size_t>(largest) + 2, 0);
  for (const int32_t id : ids) ++place[static_cast<size_t>(id) + 1];
  std::vector<int32_t> segments;
  for (size_t id = 1; id < place.size(); ++id) {
    if (place[id] > 0) segments.push_back(place[id - 1]);
    place[id] += place[id - 1];
  }
  segments.push_back(static_cast<int32_t>(ids.size()));
  std::vector<int32_t> order(ids.size());
  for (size_t n = 0; n < ids.size(); ++n)
    order[static_cast<size_t>(place[static_cast<size_t>(ids[n])]++)] = static_cast<int32_t>(n);
  index.order = Tensor::from(context, {B * T}, order);
  index.segments = Tensor::from(context, {static_cast<int64_t>(segments.size())}, segments);
  return index;
}

namespace {

Tensor gather(const Tensor& ids, const Parameter& table) {
  const View& rows = table.value;
  Tensor out = Tensor::empty(ids.context(), {ids.shape()[0], ids.shape()[1], rows.size(1)}, rows.dtype);
  launch(ids.context(), EmbeddingForward{.out = out.view(), .table = rows, .ids = ids.view()});
  return out;
}

}  // namespace

Var embedding(Tape& tape, const TokenIndex& tokens, Parameter& table) {
  const Shape ids = tokens.ids.shape();
  check(ids.rank() == 2 && table.value.rank() == 2,
        "embedding: ids must be [B,T] and table [V,C]; ids is {}, table is {}", ids.text(), table.value.shape.text());
  const OpScope scope(tape.context(), "embedding");
  tape.use(table);
  Var y = tape.output(gather(tokens.ids, table),
                      [ids = tokens.ids, parameter = &table] { return gather(ids, *parameter); });
  if (tape.recording()) {
    check(tokens.order.defined(), "embedding: recording needs tokens grouped by id");
    tape.record("embedding", [tokens, parameter = &table, id = y.id](Tape& t) {
      const Tensor dy = t.take(id);
      launch(t.context(), EmbeddingBackward{.table_grad = parameter->grad,
                                            .out_grad = dy.view(),
                                            .ids = tokens.ids.view(),
                                            .order = tokens.order.view(),
                                            .segments = tokens.segments.view(),
                                            .accumulate = parameter->accumulate()});
      parameter->end_use();
    });
  }
  return y;
}

}  // namespace egmla::ops
