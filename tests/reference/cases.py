"""The configurations that compare.py runs, and the files that they need: token shards and a byte tokenizer."""

import json

import numpy as np

T = 40
VOCAB = 97
BYTES_VOCAB = 257  # 256 bytes and the end-of-text id
END_OF_TEXT = 256
TRAIN_SAMPLES, VAL_SAMPLES = 16, 6


def model(attention, **keys):
    # Weights larger than usual, so that attention counts for the loss from the start.
    base = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": VOCAB, "max_position_embeddings": 64, "initializer_range": 0.15}
    return {**base, **keys, "attention": attention}


def mha(**keys):
    return {"type": "mha", **keys}


def mla(**keys):
    return {"type": "mla", "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, **keys}


def egmla(gate=None, **keys):
    return {**mla(**keys), "type": "egmla", "gate": {"embed_dim": 14, **(gate or {})}}


CASES = {
    "mha": model(mha()),
    "gqa_untied": model(mha(num_key_value_heads=2), tie_word_embeddings=False, num_hidden_layers=3),
    "mha_layernorm_gelu": model(mha(head_dim=12), norm="layernorm", norm_eps=1e-5, ffn="gelu"),
    "mha_interleaved": model(mha(), rope_interleave=True, rope_theta=500.0, hidden_size=48),
    "mla": model(mla()),
    "mla_q_lora_untied": model(mla(q_lora_rank=18), tie_word_embeddings=False),
    "mla_halves_layernorm": model(mla(), rope_interleave=False, norm="layernorm", ffn="gelu"),
    "egmla": model(egmla()),
    "egmla_off": model(egmla({"embed_dim": 0})),
    "egmla_latent_q_lora": model(egmla({"position": "latent"}, q_lora_rank=18)),
    "egmla_latent_no_norm": model(egmla({"position": "latent", "norm": "none", "activation": "silu"})),
    "egmla_k_sigmoid": model(egmla({"targets": "k", "activation": "sigmoid"})),
    "egmla_k_per_head": model(egmla({"targets": "k", "norm": "per_head"})),
    "egmla_v_tanh": model(egmla({"targets": "v", "activation": "tanh", "norm": "separate"})),
    "egmla_separate_offset": model(egmla({"norm": "separate", "offset": 1.0, "init_std": 0.1}), hidden_size=48),
    "egmla_per_head_shared": model(egmla({"norm": "per_head", "share_layers": 2, "activation": "silu"}),
                                   num_hidden_layers=3, tie_word_embeddings=False),
    "egmla_no_norm": model(egmla({"norm": "none", "offset": 1.0}), norm="layernorm"),
    "mha_documents": model(mha(), vocab_size=BYTES_VOCAB),
    "egmla_documents": model(egmla({"share_layers": 3}), vocab_size=BYTES_VOCAB, num_hidden_layers=3),
}


def masks_documents(name):
    return name.endswith("_documents")


def random_ids(samples, with_documents, seed):
    """samples * T + 1 ids; with documents, about every twelfth ends one."""
    rng = np.random.default_rng(seed)
    count = samples * T + 1
    if not with_documents:
        return rng.integers(0, VOCAB, count)
    ids = rng.integers(0, END_OF_TEXT, count)
    ids[rng.random(count) < 1 / 12] = END_OF_TEXT
    return ids


def write_shard(path, ids):
    """llm.c's layout: 256 int32 of header, then uint16 ids."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + ids.astype("<u2").tobytes())


def write_byte_tokenizer(path):
    """A tokenizer.json without merges: every byte is a token, in GPT-2's printable alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": END_OF_TEXT, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
           "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
           "vocab": {letters[byte]: byte for byte in range(256)} | {end["content"]: END_OF_TEXT}, "merges": []}
    path.write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": bpe}), encoding="utf-8")


def configuration(name, folder):
    """The whole configuration of a case whose files lie in `folder`."""
    data = {"train": str(folder / "train.bin"), "val": str(folder / "val.bin"), "sequence_length": T,
            "order": "sequential"}
    if masks_documents(name):
        data |= {"tokenizer": str(folder / "tokenizer.json"), "mask_documents": True}
    return {
        "run": {"name": name, "seed": 7, "device": "cpu", "precision": "fp32"},
        "model": CASES[name],
        "data": data,
        "train": {"max_steps": 4, "batch_tokens": 4 * T, "micro_batch_size": 2,
                  "optimizer": {"lr": 0.01}, "schedule": {"type": "constant"},
                  "eval": {"every": 0}, "checkpoint": {"every": 0}},
    }
