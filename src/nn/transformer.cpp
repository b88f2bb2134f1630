#include "nn/transformer.h"

#include "kernels/decode_cache.h"
#include "kernels/embedding.h"
#include "kernels/layout.h"

namespace egmla {

Transformer::Transformer(const ModelConfig& model) : model_(model) {
  const Init init{.std = model.initializer_range};
  embedding_ = store_.add(
      {{.path = "model.embed_tokens.weight", .rows = model.vocab_size, .columns = model.hidden_size, .init = init}});
  for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    const std::string path = fmt::format("model.layers.{}.", layer);
    Norm attention_norm(model, path + "input_layernorm", store_);
    auto attention = make_attention(model, layer, store_);
    Norm ffn_norm(model, path + "post_attention_layernorm", store_);
    blocks_.push_back({attention_norm, std::move(attention), ffn_norm, FeedForward(model, path + "mlp.", store_)});
  }
  final_norm_ = std::make_unique<Norm>(model, "model.norm", store_);
  head_ = model.tie_word_embeddings
              ? embedding_
              : store_.add(
                    {{.path = "lm_head.weight", .rows = model.vocab_size, .columns = model.hidden_size, .init = init}});
}

void Transformer::allocate(Context& context, DType dtype, std::vector<OwnPart> own) {
  dtype_ = dtype;
  store_.allocate(context, dtype, std::move(own));
  const DType table = dtype == DType::f64 ? DType::f64 : DType::f32;
  if (blocks_.empty()) return;
  const ops::RopeTable rope =
      ops::make_rope_table(context, model_.max_position_embeddings, blocks_.front().attention->rope_width(),
                           model_.rope_theta, model_.interleaved_rope(), table);
  for (Block& block : blocks_) block.attention->use_rope(rope);
}

std::vector<Var> Transformer::run_block(size_t layer, const std::vector<Var>& in, const Batch& batch,
                                        LayerCache* cache) const {
  const Block& block = blocks_[layer];
  const Norm& next = layer + 1 < blocks_.size() ? blocks_[layer + 1].attention_norm : *final_norm_;
  const auto [x, h] = block.ffn_norm.after_sum(in[0], block.attention->forward(in[1], batch, cache));
  const auto [x_next, h_next] = next.after_sum(x, block.ffn(h));
  return {x_next, h_next};
}

Var Transformer::trunk(Tape& tape, const Batch& batch, std::vector<LayerCache>* caches) {
  check(batch.past + batch.length() <= model_.max_position_embeddings,
        "model: {} positions asked, max_position_embeddings is {}", batch.past + batch.length(),
        model_.max_position_embeddings);
  tape.set_frugal(tape.recording() && recompute_ != Recompute::none);
  tape.set_fp8(tape.recording() && fp8_);
  std::vector<Var> state = {ops::embedding(tape, batch.tokens, *embedding_)};
  if (blocks_.empty()) return (*final_norm_)(state[0]);
  state.push_back(blocks_.front().attention_norm(state[0]));
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    LayerCache* cache = caches ? &(*caches)[layer] : nullptr;
    const auto block = [this, layer, batch, cache](const std::vector<Var>& in) {
      return run_block(layer, in, batch, cache);
    };
    state = recompute_ == Recompute::full ? ops::recompute(state, block) : block(state);
    if (layer == 0) tape.postpone_weights_so_far();
  }
  return state[1];
}

ops::HeadLoss Transformer::loss(Tape& tape, const Batch& batch, double loss_scale) {
  return ops::head_loss(trunk(tape, batch, nullptr), *head_, batch.targets, loss_scale);
}

Tensor Transformer::hidden(const Batch& batch, const std::vector<int32_t>& rows) {
  Context& context = store_.context();
  Tape tape(context, Tape::Mode::inference);
  const Tensor h = trunk(tape, batch, nullptr).value;
  const Shape count = {std::ssize(rows)};
  Tensor out = Tensor::empty(context, {std::ssize(rows), model_.hidden_size}, h.dtype());
  launch(context,
         EmbeddingForward{
             .out = out.view(), .table = h.view().as_matrix(), .ids = Tensor::from(context, count, rows).view()});
  return out;
}

Tensor Transformer::next_logits(const Batch& batch, std::vector<LayerCache>& caches) {
  Context& context = store_.context();
  Tape tape(context, Tape::Mode::inference);
  const Tensor h = trunk(tape, batch, &caches).value;
  tape.use(*head_);
  const Tensor last = Tensor::empty(context, {batch.rows(), 1, model_.hidden_size}, h.dtype());
  launch(context, Copy{.out = last.view(), .x = h.view().middle(batch.length() - 1, 1)});
  return ops::head_logits(last, *head_);
}

DecodeState Transformer::make_decode_state(int64_t B, int64_t capacity) const {
  Context& context = store_.context();
  const OpScope op(context, "decode");
  const MemoryScope memory(context, MemoryCategory::cache);
  DecodeState state(context, dtype_, B, capacity);
  if (model_.gated()) state.ids = Tensor::zeros(context, {B, capacity}, DType::i32);
  for (const Block& block : blocks_) {
    LayerCache cache{Tensor::zeros(context, {B, capacity, block.attention->cache_width()}, dtype_), {}, {}};
    const Attention::CachedStatistics statistics = block.attention->cached_statistics();
    for (int64_t i = 0; i < statistics.tensors; ++i) {
      cache.mean.push_back(Tensor::zeros(context, {B, capacity, statistics.groups}, state.statistics()));
      cache.rstd.push_back(Tensor::zeros(context, {B, capacity, statistics.groups}, state.statistics()));
    }
    state.layers.push_back(std::move(cache));
  }
  return state;
}

std::vector<Tensor> Transformer::fold_gates() const {
  std::vector<Tensor> tables;
  for (const Block& block : blocks_) {
    const Tensor table = block.attention->fold_gate(store_.context());
    if (table.defined()) tables.push_back(table);
  }
  return tables;
}

int64_t Transformer::folded_features() const {
  int64_t sum = 0;
  for (const Block& block : blocks_) sum += block.attention->folded_features();
  return sum;
}

View Transformer::decode_step(DecodeState& state) {
  const int64_t B = state.sequences(), D = model_.hidden_size;
  const View sums[2] = {state.buffer("residual.0", {B, D}), state.buffer("residual.1", {B, D})};
  size_t turn = 0;
  const auto next_sum = [&] { return sums[turn++ % 2]; };
  if (state.ids.defined())
    launch(state,
           RecordToken{.ids = state.ids.view(), .tokens = state.tokens.view(), .positions = state.positions.view()});
  const Norm& first = blocks_.empty() ? *final_norm_ : blocks_.front().attention_norm;
  DecodeInput in = first.input(embedding_->value, View{}, next_sum());
  in.ids = state.tokens.view();
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = blocks_[layer];
    const Norm& next = layer + 1 < blocks_.size() ? blocks_[layer + 1].attention_norm : *final_norm_;
    const View mixed = block.attention->step(in, state, layer);
    in = block.ffn_norm.input(in.sum, mixed, next_sum());
    const View hidden = block.ffn.step(in, state);
    in = next.input(in.sum, hidden, next_sum());
  }
  const View logits = state.buffer("logits", {B, model_.vocab_size});
  decode_project(state, "logits", in, *head_, logits);
  launch(state, GreedyStep{.tokens = state.tokens.view(),
                           .positions = state.positions.view(),
                           .logits = logits,
                           .capacity = state.capacity()});
  return logits;
}

double Transformer::decode_flops(bool folded) const {
  double sum = 0;
  for (const Block& block : blocks_) sum += block.attention->decode_flops(folded);
  return sum;
}

int64_t Transformer::cache_statistics() const {
  int64_t sum = 0;
  for (const Block& block : blocks_) sum += block.attention->cached_statistics().numbers();
  return sum;
}

int64_t Transformer::cache_elements() const {
  int64_t sum = 0;
  for (const Block& block : blocks_) sum += block.attention->cache_width();
  return sum;
}

int64_t Transformer::matmul_parameters() const {
  int64_t sum = 0;
  for (const NamedTensor& tensor : store_.tensors()) {
    const bool looked_up = tensor.group == ParameterGroup::gate_table ||
                           (!model_.tie_word_embeddings && tensor.path == "model.embed_tokens.weight");
    if (tensor.columns && !looked_up) sum += tensor.elements();
  }
  return sum;
}

double Transformer::flops_per_token(int64_t T) const {
  double attention = 0;
  for (const Block& block : blocks_) attention += block.attention->attention_flops(T);
  return 6.0 * static_cast<double>(matmul_parameters()) + 3.0 * attention;
}

}  // namespace egmla
