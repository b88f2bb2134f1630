"""The decoders that egmla trains, for transformers 5: MHA, MLA (arXiv 2405.04434) and EG-MLA (arXiv 2509.16686).

EG-MLA is MLA with a gate that depends on the token id alone: kv = LayerNorm(u * act(offset + W E[id])), u = W^UKV c.
generate() caches per token and layer the latent c and the rotated shared key, and each token's id once.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

INNER_EPS = 1e-6  # of MLA's inner norms and of the gate's norm, whatever the blocks' is
GATE_DEFAULTS = {"embed_dim": 0, "position": "after_up", "targets": "kv", "norm": "joint", "activation": "none",
                 "share_layers": 1, "offset": 0.0}
ACTIVATIONS = {"none": lambda x: x, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu}


class EgmlaConfig(PretrainedConfig):
    """Keys as in egmla's `model:` section, `attention.*` without its prefix and `attention.gate.*` in `gate`."""

    model_type = "egmla"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
                 vocab_size=50257, max_position_embeddings=2048, norm="rmsnorm", norm_eps=1e-6, ffn="swiglu",
                 rope_theta=10000.0, rope_interleave=True, tie_word_embeddings=True, initializer_range=0.02,
                 attention_type="egmla", num_key_value_heads=None, head_dim=None, q_lora_rank=None, kv_lora_rank=256,
                 qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64, gate=None, **kwargs):
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.norm = norm
        self.norm_eps = norm_eps
        self.ffn = ffn
        self.rope_theta = rope_theta
        self.rope_interleave = rope_interleave
        self.initializer_range = initializer_range
        self.attention_type = attention_type
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.q_lora_rank = q_lora_rank
        self.kv_lora_rank = kv_lora_rank
        self.qk_nope_head_dim = qk_nope_head_dim
        self.qk_rope_head_dim = qk_rope_head_dim
        self.v_head_dim = v_head_dim
        self.gate = {**GATE_DEFAULTS, **(gate or {})}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    @property
    def gate_position(self):
        """after_up, latent, or None without a gate."""
        gated = self.attention_type == "egmla" and self.gate["embed_dim"] > 0
        return self.gate["position"] if gated else None

    @property
    def rotated_width(self):
        return self.head_dim if self.attention_type == "mha" else self.qk_rope_head_dim


class EgmlaRMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class EgmlaGateLayerNorm(nn.Module):
    """LayerNorm of [B, T, H, w] over each head or over all, with a weight and a bias per feature."""

    def __init__(self, features, per_head):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.axes = (-1,) if per_head else (-2, -1)

    def forward(self, x, columns):
        heads = x.shape[-2]
        weight = self.weight.view(heads, -1)[:, columns].float()
        bias = self.bias.view(heads, -1)[:, columns].float()
        x = x - x.mean(self.axes, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(self.axes, keepdim=True) + INNER_EPS) * weight + bias


def block_norm(config):
    kind = EgmlaRMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


def rotary_table(config, positions):
    """positions [B, T] -> cosines and sines [B, 1, T, width / 2]."""
    kind = torch.float32 if positions.device.type == "mps" else torch.float64
    width = config.rotated_width
    steps = torch.arange(0, width, 2, dtype=kind, device=positions.device) / width
    angles = positions[:, None, :, None].to(kind) * torch.pow(float(config.rope_theta), -steps)
    return angles.cos().float(), angles.sin().float()


def rotate(x, table, interleave):
    """x [B, H, T, d]: pairs (2p, 2p+1) turn when interleaved, else (p, p + d/2)."""
    cos, sin = table
    a, b = (x[..., 0::2], x[..., 1::2]) if interleave else x.chunk(2, dim=-1)
    turned = a * cos - b * sin, b * cos + a * sin
    return (torch.stack(turned, dim=-1).flatten(-2) if interleave else torch.cat(turned, dim=-1)).to(x.dtype)


class EgmlaMultiHeadAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads * width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, groups * width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, groups * width, bias=False)
        self.o_proj = nn.Linear(heads * width, config.hidden_size, bias=False)

    def forward(self, x, step):
        config = self.config
        q, k, v = (project(x).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
                   for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotate(part, step.rotary, config.rope_interleave) for part in (q, k))
        if step.cache is not None:
            k, v = step.cache.update(k, v, self.layer)
        repeats = config.num_attention_heads // config.num_key_value_heads
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=step.mask, scale=config.head_dim**-0.5)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class EgmlaLatentAttention(nn.Module):
    """MLA, and EG-MLA where the configuration has a gate."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(config.hidden_size, heads * (nope + rope), bias=False)
        else:
            self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
            self.q_a_layernorm = EgmlaRMSNorm(config.q_lora_rank, INNER_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * (nope + rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, config.kv_lora_rank + rope, bias=False)
        self.kv_a_layernorm = EgmlaRMSNorm(config.kv_lora_rank, INNER_EPS)
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, heads * (nope + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * config.v_head_dim, config.hidden_size, bias=False)
        if config.gate_position is not None:
            self.make_gate(config, layer)

    def make_gate(self, config, layer):
        gate = config.gate
        per_head = config.qk_nope_head_dim * (gate["targets"] != "v") + config.v_head_dim * (gate["targets"] != "k")
        features = config.kv_lora_rank if gate["position"] == "latent" else config.num_attention_heads * per_head
        if layer % gate["share_layers"] == 0:  # a group's first layer owns the table
            self.gate_embed = nn.Embedding(config.vocab_size, gate["embed_dim"])
        self.gate_proj = nn.Linear(gate["embed_dim"], features, bias=False)
        if gate["norm"] != "none":
            self.gate_norm = EgmlaGateLayerNorm(features, gate["norm"] == "per_head")

    def modulate(self, u, g, columns=slice(None)):
        """u, g [B, T, H, w]; columns: where these features stand in a head's norm."""
        gate = self.config.gate
        y = u.float() * ACTIVATIONS[gate["activation"]](gate["offset"] + g.float())
        return (self.gate_norm(y, columns) if gate["norm"] != "none" else y).to(u.dtype)

    def keys_and_values(self, c, step):
        """c [B, S, d_c] -> [B, S, H, d_n], [B, S, H, d_v]."""
        config = self.config
        heads, nope = config.num_attention_heads, config.qk_nope_head_dim
        u = self.kv_b_proj(c).unflatten(-1, (heads, -1))
        k, v = u[..., :nope], u[..., nope:]
        if config.gate_position != "after_up":
            return k, v
        g = self.gate_proj(step.tables[self.layer](step.all_ids)).unflatten(-1, (heads, -1))
        targets = config.gate["targets"]
        if targets == "k":
            return self.modulate(k, g), v
        if targets == "v":
            return k, self.modulate(v, g)
        if config.gate["norm"] == "separate":
            front, back = slice(None, nope), slice(nope, None)
            return self.modulate(k, g[..., front], front), self.modulate(v, g[..., back], back)
        kv = self.modulate(u, g)
        return kv[..., :nope], kv[..., nope:]

    def forward(self, x, step):
        config = self.config
        nope, rope, heads = config.qk_nope_head_dim, config.qk_rope_head_dim, config.num_attention_heads
        q = self.q_proj(x) if config.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rope = q.unflatten(-1, (heads, -1)).transpose(1, 2).split([nope, rope], dim=-1)
        c, k_rope = self.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, rope], dim=-1)
        c = self.kv_a_layernorm(c)
        if config.gate_position == "latent":
            g = self.gate_proj(step.tables[self.layer](step.ids))
            c = self.modulate(c.unsqueeze(2), g.unsqueeze(2)).squeeze(2)
        q_rope = rotate(q_rope, step.rotary, config.rope_interleave)
        k_rope = rotate(k_rope.unsqueeze(1), step.rotary, config.rope_interleave)
        c = c.unsqueeze(1)
        if step.cache is not None:
            c, k_rope = step.cache.update(c, k_rope, self.layer)
        k, v = (part.transpose(1, 2) for part in self.keys_and_values(c.squeeze(1), step))
        q = torch.cat([q_nope, q_rope], dim=-1)
        k = torch.cat([k, k_rope.expand(-1, heads, -1, -1)], dim=-1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=step.mask, scale=(nope + rope) ** -0.5)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class EgmlaFeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated = config.ffn == "swiglu"
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        up = self.up_proj(x)
        return self.down_proj(F.silu(self.gate_proj(x)) * up if self.gated else F.gelu(up, approximate="tanh"))


class EgmlaLayer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        attention = EgmlaMultiHeadAttention if config.attention_type == "mha" else EgmlaLatentAttention
        self.self_attn = attention(config, layer)
        self.mlp = EgmlaFeedForward(config)
        self.input_layernorm = block_norm(config)
        self.post_attention_layernorm = block_norm(config)

    def forward(self, x, step):
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))


class Step:
    """What all layers share in one forward pass: ids now and ever, rotary table, mask, cache, gate tables by layer."""

    def __init__(self, config, layers, ids, attention_mask, positions, cache):
        past = cache.get_seq_length() if cache is not None else 0
        now = torch.arange(past, past + ids.shape[1], device=ids.device)
        self.ids, self.all_ids, self.cache = ids, ids, cache
        if cache is not None and config.gate_position == "after_up":
            self.all_ids = self.remember(cache, len(layers), ids)
        self.rotary = rotary_table(config, now[None] if positions is None else positions)
        keys = torch.arange(past + ids.shape[1], device=ids.device)
        self.mask = (keys[None, :] <= now[:, None])[None, None]
        if attention_mask is not None:  # a token always sees itself: no row is empty, not even padding's
            self.mask = self.mask & attention_mask[:, None, None, :].bool() | (keys[None, :] == now[:, None])
        share = config.gate["share_layers"]
        self.tables = []
        if config.gate_position is not None:
            self.tables = [layers[i // share * share].self_attn.gate_embed for i in range(len(layers))]

    @staticmethod
    def remember(cache, layer, ids):
        """Appends ids to one more layer of the cache, so that whatever reorders or crops the cache takes them along."""
        if not isinstance(cache, DynamicCache):
            raise ValueError(f"EG-MLA needs a DynamicCache, which can hold token ids too; found {type(cache).__name__}")
        while len(cache.layers) <= layer:
            cache.layers.append(DynamicLayer())
        column = ids[:, None, :, None]
        return cache.layers[layer].update(column, column[..., :0])[0][:, 0, :, 0]


class EgmlaPreTrainedModel(PreTrainedModel):
    config_class = EgmlaConfig
    base_model_prefix = "model"
    _no_split_modules = ["EgmlaLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True


class EgmlaModel(EgmlaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([EgmlaLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = block_norm(config)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None):
        step = Step(self.config, self.layers, input_ids, attention_mask, position_ids, past_key_values)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, step)
        return self.norm(x)


class EgmlaForCausalLM(EgmlaPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = EgmlaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, labels=None,
                use_cache=None, logits_to_keep=0, **kwargs):
        use_cache = getattr(self.config, "use_cache", True) if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        x = self.model(input_ids, attention_mask, position_ids, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
