"""Checks the reference itself on random weights: what must hold whatever the formulas' details."""

import copy

import numpy as np

from cases import CASES, END_OF_TEXT, T, masks_documents
from egmla_reference import Model, rope, standardize

DEFAULTS = {"norm": "rmsnorm", "norm_eps": 1e-6, "ffn": "swiglu", "rope_theta": 10000.0, "tie_word_embeddings": True}
GATE_DEFAULTS = {"position": "after_up", "targets": "kv", "norm": "joint", "activation": "none", "share_layers": 1,
                 "offset": 0.0}


class RandomWeights(dict):
    """Draws a weight when it is first read. The shape follows from the name, as the description gives it."""

    def __init__(self, model, seed):
        super().__init__()
        self.model, self.rng = model, np.random.default_rng(seed)

    def __missing__(self, name):
        shape = self.shape(name.split(".")[-2], name)
        values = self.rng.normal(size=shape) / np.sqrt(shape[-1] if len(shape) > 1 else 1)
        self[name] = 1 + 0.1 * values if "norm" in name and name.endswith("weight") else values
        return self[name]

    def shape(self, module, name):
        m, a = self.model, self.model["attention"]
        gate = a.get("gate", {})
        heads, width, ffn = m["num_attention_heads"], m["hidden_size"], m["intermediate_size"]
        if module in ("embed_tokens", "lm_head"):
            return m["vocab_size"], width
        if ".mlp." in name:
            return (width, ffn) if module == "down_proj" else (ffn, width)
        if ".self_attn." not in name:
            return (width,)
        if a["type"] == "mha":
            d_h = a.get("head_dim", width // heads)
            rows = heads if module in ("q_proj", "o_proj") else a.get("num_key_value_heads", heads)
            return (width, heads * d_h) if module == "o_proj" else (rows * d_h, width)
        d_n, d_r, d_v, d_c = (a[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"))
        gated = {"kv": heads * (d_n + d_v), "k": heads * d_n, "v": heads * d_v}[gate.get("targets", "kv")]
        gated = d_c if gate.get("position") == "latent" else gated
        low = a.get("q_lora_rank")
        return {
            "q_proj": (heads * (d_n + d_r), width), "q_a_proj": (low, width), "q_a_layernorm": (low,),
            "q_b_proj": (heads * (d_n + d_r), low), "kv_a_proj_with_mqa": (d_c + d_r, width), "kv_a_layernorm": (d_c,),
            "kv_b_proj": (heads * (d_n + d_v), d_c), "o_proj": (width, heads * d_v),
            "gate_embed": (m["vocab_size"], gate.get("embed_dim")), "gate_proj": (gated, gate.get("embed_dim")),
            "gate_norm": (gated,),
        }[module]


def random_model(name, **gate):
    model = {**DEFAULTS, **copy.deepcopy(CASES[name])}
    if "gate" in model["attention"]:
        model["attention"]["gate"] = {**GATE_DEFAULTS, **model["attention"]["gate"], **gate}
    return Model({"model": model}, RandomWeights(model, seed=1))


def check_future_is_unseen(name, rng):
    """A later token never changes an earlier output, and always changes its own."""
    model = random_model(name)
    ids = rng.integers(0, 97, T)
    other = ids.copy()
    other[T // 2] = (ids[T // 2] + 1) % 97
    difference = np.abs(model.logits(ids) - model.logits(other)).max(axis=-1)
    assert np.all(difference[: T // 2] == 0), f"{name}: a future token changed a past output"
    assert np.all(difference[T // 2 :] > 0), f"{name}: a token did not reach the outputs after it"


def check_documents_are_apart(name, rng):
    """With masked documents, each gives the logits that it gives alone."""
    model = random_model(name)
    first, second = np.append(rng.integers(0, END_OF_TEXT, 15), END_OF_TEXT), rng.integers(0, END_OF_TEXT, 20)
    together = model.logits(np.concatenate([first, second]), END_OF_TEXT)
    assert np.allclose(together[:16], model.logits(first), atol=1e-10), f"{name}: the first document differs"
    assert np.allclose(together[16:], model.logits(second), atol=1e-10), f"{name}: the second document sees the first"


def check_rope(rng):
    """Products of rotated vectors depend on the distance alone, in both layouts."""
    x = np.broadcast_to(rng.normal(size=(1, 1, 8)), (T, 1, 8))
    for interleaved in (True, False):
        rotated = rope(x, 10000.0, interleaved)[:, 0]
        products = rotated @ rotated.T
        assert np.allclose(products[3, 1], products[33, 31]) and not np.allclose(products[3, 1], products[3, 2])


def check_gate(rng):
    """embed_dim 0 is MLA, the gate follows the token, and the norm leaves unit variance."""
    ids = rng.integers(0, 97, T)
    model = random_model("egmla_off")
    plain = Model({"model": {**model.model, "attention": {**model.attention, "type": "mla"}}}, model.weights)
    assert np.array_equal(model.logits(ids), plain.logits(ids)), "a gate of width 0 is not MLA"
    joint, per_head = random_model("egmla"), random_model("egmla", norm="per_head")
    per_head.weights = joint.weights
    assert not np.allclose(joint.logits(ids), per_head.logits(ids)), "gate.norm has no effect"
    assert np.allclose(standardize(rng.normal(size=(3, 64)) * 5 + 2, 1e-12).var(axis=-1), 1)


def run():
    rng = np.random.default_rng(3)
    for name in CASES:
        check_future_is_unseen(name, rng)
        if masks_documents(name):
            check_documents_are_apart(name, rng)
    check_rope(rng)
    check_gate(rng)
    print(f"reference: self-test passed, {len(CASES)} configurations")


if __name__ == "__main__":
    run()
