#include "kernels/embedding.h"

#include <algorithm>
#include <numeric>

#include "ops/ops.h"

namespace egmla::ops {

TokenIndex make_token_index(Context& context, const std::vector<int32_t>& ids, int64_t B, int64_t T, bool grouped) {
  TokenIndex index;
  index.ids = Tensor::from(context, {B, T}, ids);
  if (!grouped) return index;
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return ids[size_t(a)] < ids[size_t(b)]; });
  std::vector<int32_t> segments;
  for (size_t j = 0; j < order.size(); ++j) {
    if (j == 0 || ids[size_t(order[j])] != ids[size_t(order[j - 1])]) segments.push_back(static_cast<int32_t>(j));
  }
  segments.push_back(static_cast<int32_t>(order.size()));
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
    });
  }
  return y;
}

}  // namespace egmla::ops
