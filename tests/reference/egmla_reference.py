"""An independent forward pass of every model of the family: NumPy, float64, one sequence at a time.

Written from the model's description alone and shares nothing with the C++ code, so that the two can disagree.
Weights are [out, in] under Hugging Face's names; activations [T, ...]; symbols as in docs/conventions.md.
"""

import re

import h5py
import numpy as np
import yaml

INNER_EPS = 1e-6  # q_a_layernorm, kv_a_layernorm and gate_norm, whatever model.norm_eps says


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, in which 1e-06 is a string; a configuration means YAML 1.2's number."""


Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def standardize(x, eps):
    """LayerNorm without weight and bias."""
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt(np.mean(centered * centered, axis=-1, keepdims=True) + eps)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"none": lambda x: x, "sigmoid": sigmoid, "tanh": np.tanh, "silu": lambda x: x * sigmoid(x)}


def rope(x, theta, interleaved):
    """Rotates x [T, heads, d] by its position t: angle t theta^(-2p/d) for pair p, (2p, 2p+1) or (p, p + d/2)."""
    d = x.shape[-1]
    pair = np.arange(d // 2)
    angle = np.arange(x.shape[0])[:, None, None] * theta ** (-2.0 * pair / d)
    first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + d // 2)
    out = np.empty_like(x)
    out[..., first] = x[..., first] * np.cos(angle) - x[..., second] * np.sin(angle)
    out[..., second] = x[..., second] * np.cos(angle) + x[..., first] * np.sin(angle)
    return out


def softmax_attention(q, k, v, visible):
    """q [T, H, d], k [T, Hkv, d], v [T, Hkv, d_v], visible [T, T] -> [T, H d_v]."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, v).reshape(q.shape[0], -1)


class Model:
    def __init__(self, config, weights):
        self.config = config
        self.model = config["model"]
        self.attention = self.model["attention"]
        self.gate = self.attention.get("gate") or {}
        self.weights = weights
        self.used = set()  # names read so far: a checkpoint must hold nothing else

    @classmethod
    def load(cls, path):
        with h5py.File(path, "r") as file:
            config = yaml.load(file.attrs["config"], Loader=Yaml12Loader)
            weights = {name: dataset[...].astype(np.float64) for name, dataset in file["model"].items()}
        return cls(config, weights)

    def weight(self, name):
        self.used.add(name)
        return self.weights[name]

    def linear(self, name, x):
        return x @ self.weight(name + ".weight").T

    def norm(self, name, x):
        if self.model["norm"] == "rmsnorm":
            return rms_norm(x, self.weight(name + ".weight"), self.model["norm_eps"])
        return standardize(x, self.model["norm_eps"]) * self.weight(name + ".weight") + self.weight(name + ".bias")

    def rotate(self, x):
        interleaved = self.model.get("rope_interleave")
        if interleaved is None:
            interleaved = self.attention["type"] != "mha"
        return rope(x, self.model["rope_theta"], interleaved)

    def mha(self, at, h, visible):
        heads = self.model["num_attention_heads"]
        kv_heads = self.attention.get("num_key_value_heads") or heads
        d_h = self.attention.get("head_dim") or self.model["hidden_size"] // heads
        q = self.linear(at + "q_proj", h).reshape(-1, heads, d_h)
        k = self.linear(at + "k_proj", h).reshape(-1, kv_heads, d_h)
        v = self.linear(at + "v_proj", h).reshape(-1, kv_heads, d_h)
        return softmax_attention(self.rotate(q), self.rotate(k), v, visible)

    def mla(self, layer, at, h, ids, visible):
        heads = self.model["num_attention_heads"]
        d_n, d_r = self.attention["qk_nope_head_dim"], self.attention["qk_rope_head_dim"]
        d_v, d_c = self.attention["v_head_dim"], self.attention["kv_lora_rank"]
        if self.attention.get("q_lora_rank"):
            low = rms_norm(self.linear(at + "q_a_proj", h), self.weight(at + "q_a_layernorm.weight"), INNER_EPS)
            q = self.linear(at + "q_b_proj", low)
        else:
            q = self.linear(at + "q_proj", h)
        q = q.reshape(-1, heads, d_n + d_r)
        down = self.linear(at + "kv_a_proj_with_mqa", h)
        c = rms_norm(down[:, :d_c], self.weight(at + "kv_a_layernorm.weight"), INNER_EPS)
        gated = self.attention["type"] == "egmla" and self.gate["embed_dim"] > 0
        if gated and self.gate["position"] == "latent":
            c = self.apply_gate(layer, at, c[:, None, :], ids)[:, 0]
        u = self.linear(at + "kv_b_proj", c).reshape(-1, heads, d_n + d_v)
        if gated and self.gate["position"] == "after_up":
            part = {"kv": slice(None), "k": slice(0, d_n), "v": slice(d_n, None)}[self.gate["targets"]]
            u[..., part] = self.apply_gate(layer, at, u[..., part], ids)
        shared_key = np.repeat(self.rotate(down[:, None, d_c:]), heads, axis=1)
        q = np.concatenate([q[..., :d_n], self.rotate(q[..., d_n:])], axis=-1)
        k = np.concatenate([u[..., :d_n], shared_key], axis=-1)
        return softmax_attention(q, k, u[..., d_n:], visible)

    def apply_gate(self, layer, at, u, ids):
        """u [T, heads, width] -> norm(u * act(offset + W^UE E[ids])), in the same shape."""
        first = layer - layer % self.gate["share_layers"]
        table = self.weight(f"model.layers.{first}.self_attn.gate_embed.weight")
        g = ACTIVATIONS[self.gate["activation"]](self.gate["offset"] + self.linear(at + "gate_proj", table[ids]))
        product = u * g.reshape(u.shape)
        if self.gate["norm"] == "none":
            return product
        normed = self.gate_statistics(product)
        weight, bias = self.weight(at + "gate_norm.weight"), self.weight(at + "gate_norm.bias")
        return normed * weight.reshape(u.shape[1:]) + bias.reshape(u.shape[1:])

    def gate_statistics(self, x):
        """Standardizes x [T, heads, width] over the features that gate.norm takes together."""
        over_all = lambda part: standardize(part.reshape(len(part), -1), INNER_EPS).reshape(part.shape)
        if self.gate["norm"] == "per_head":
            return standardize(x, INNER_EPS)
        if self.gate["norm"] == "separate" and self.gate["targets"] == "kv":
            d_n = self.attention["qk_nope_head_dim"]
            return np.concatenate([over_all(x[..., :d_n]), over_all(x[..., d_n:])], axis=-1)
        return over_all(x)

    def feed_forward(self, at, x):
        if self.model["ffn"] == "gelu":
            return self.linear(at + "down_proj", gelu_tanh(self.linear(at + "up_proj", x)))
        gate = self.linear(at + "gate_proj", x)
        return self.linear(at + "down_proj", gate * sigmoid(gate) * self.linear(at + "up_proj", x))

    def visible(self, ids, end_of_text):
        """[T, T]: which keys a query sees. A document ends with, and contains, its end-of-text id."""
        causal = np.tril(np.ones((len(ids), len(ids)), dtype=bool))
        if end_of_text is None:
            return causal
        document = np.concatenate([[0], np.cumsum(ids == end_of_text)[:-1]])
        return causal & (document[:, None] == document[None, :])

    def logits(self, ids, end_of_text=None):
        """ids [T] -> [T, V]; attention stays within documents when end_of_text is given."""
        ids = np.asarray(ids)
        visible = self.visible(ids, end_of_text)
        x = self.weight("model.embed_tokens.weight")[ids]
        for layer in range(self.model["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            h = self.norm(at + "input_layernorm", x)
            if self.attention["type"] == "mha":
                mixed = self.mha(at + "self_attn.", h, visible)
            else:
                mixed = self.mla(layer, at + "self_attn.", h, ids, visible)
            x = x + self.linear(at + "self_attn.o_proj", mixed)
            x = x + self.feed_forward(at + "mlp.", self.norm(at + "post_attention_layernorm", x))
        x = self.norm("model.norm", x)
        return self.linear("model.embed_tokens" if self.model["tie_word_embeddings"] else "lm_head", x)

    def losses(self, ids, end_of_text=None):
        """ids [T + 1] -> the loss in nats of predicting ids[1:], [T]. With end_of_text, the first token of a document
        is not predicted from the document before: such losses are left out."""
        logits = self.logits(ids[:-1], end_of_text)
        peak = logits.max(axis=-1)
        log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=-1))
        losses = log_sum - logits[np.arange(len(logits)), ids[1:]]
        return losses if end_of_text is None else losses[ids[:-1] != end_of_text]
