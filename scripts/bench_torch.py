#!/usr/bin/env python3
"""The model of a configuration in PyTorch, trained the way a PyTorch user would, to time beside `egmla bench train`.

    scripts/bench_torch.py CONFIG.yaml [key=value ...] [--steps N] [--warmup N] [--device cuda|cpu] [--no-compile]

On a GPU: torch.compile, bf16 autocast over f32 weights, scaled_dot_product_attention (cuDNN's first), fused AdamW; on
the CPU: eager f32. A step is forward and backward of every micro-batch, clipping by the global norm, and the update.
Prints one JSON line with the fields of `egmla bench train --json`. Needs torch and PyYAML.
"""
import argparse
import contextlib
import json
import time

import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def rotate(x, cos, sin, interleave):
    """RoPE over the last axis: neighbours form a pair when interleaved (DeepSeek), else the two halves do (Llama)."""
    if interleave:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class MultiHead(nn.Module):
    def __init__(self, m, a):
        super().__init__()
        self.heads = m["num_attention_heads"]
        self.key_heads = a.get("num_key_value_heads") or self.heads
        self.width = a.get("head_dim") or m["hidden_size"] // self.heads
        self.rope_width, self.interleave = self.width, m.get("rope_interleave", False)
        self.qkv = nn.Linear(m["hidden_size"], (self.heads + 2 * self.key_heads) * self.width, bias=False)
        self.o = nn.Linear(self.heads * self.width, m["hidden_size"], bias=False)

    def forward(self, x, ids, rope):
        B, T, _ = x.shape
        q, k, v = (y.unflatten(-1, (-1, self.width)).transpose(1, 2) for y in self.qkv(x).split(
            [n * self.width for n in (self.heads, self.key_heads, self.key_heads)], -1))
        q, k = rotate(q, *rope, self.interleave), rotate(k, *rope, self.interleave)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.key_heads != self.heads)
        return self.o(y.transpose(1, 2).reshape(B, T, -1))


class Latent(nn.Module):
    """MLA, and EG-MLA when a gate is given: kv = LayerNorm(u * W E[x]), or the same on the latent."""

    def __init__(self, m, a):
        super().__init__()
        D, H, V = m["hidden_size"], m["num_attention_heads"], m["vocab_size"]
        self.heads, self.nope, self.value = H, a["qk_nope_head_dim"], a["v_head_dim"]
        self.rope_width, self.interleave = a["qk_rope_head_dim"], m.get("rope_interleave", True)
        self.latent, rank = a["kv_lora_rank"], a.get("q_lora_rank")
        wide = H * (self.nope + self.rope_width)
        self.q = nn.Linear(D, wide, bias=False) if not rank else nn.Sequential(
            nn.Linear(D, rank, bias=False), nn.RMSNorm(rank, 1e-6), nn.Linear(rank, wide, bias=False))
        self.down = nn.Linear(D, self.latent + self.rope_width, bias=False)
        self.norm = nn.RMSNorm(self.latent, 1e-6)
        self.up = nn.Linear(self.latent, H * (self.nope + self.value), bias=False)
        self.o = nn.Linear(H * self.value, D, bias=False)
        gate = a.get("gate") or {}
        self.table = None
        if a["type"] == "egmla" and gate.get("embed_dim", 256):
            unusual = {"targets": "kv", "norm": "joint", "activation": "none", "share_layers": 1, "offset": 0}
            for key, plain in unusual.items():
                if gate.get(key, plain) != plain:
                    raise SystemExit(f"bench_torch.py: gate.{key}: {gate[key]} has no twin here; expected {plain}")
            self.in_latent = gate.get("position", "after_up") == "latent"
            width = self.latent if self.in_latent else H * (self.nope + self.value)
            self.table = nn.Embedding(V, gate.get("embed_dim", 256))
            self.gate = nn.Linear(self.table.embedding_dim, width, bias=False)
            self.gate_norm = nn.LayerNorm(width, 1e-6)

    def forward(self, x, ids, rope):
        B, T, _ = x.shape
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        c, k_rope = self.down(x).split((self.latent, self.rope_width), -1)
        c = self.norm(c)
        if self.table is not None and self.in_latent:
            c = self.gate_norm(c * self.gate(self.table(ids)))
        kv = self.up(c)
        if self.table is not None and not self.in_latent:
            kv = self.gate_norm(kv * self.gate(self.table(ids)))
        k, v = kv.unflatten(-1, (self.heads, -1)).transpose(1, 2).split((self.nope, self.value), -1)
        k_rope = rotate(k_rope[:, None], *rope, self.interleave).expand(-1, self.heads, -1, -1)
        q = torch.cat((q[..., :self.nope], rotate(q[..., self.nope:], *rope, self.interleave)), -1)
        y = F.scaled_dot_product_attention(q, torch.cat((k, k_rope), -1), v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(B, T, -1))


class Block(nn.Module):
    def __init__(self, m, norm):
        super().__init__()
        a, D, width = m["attention"], m["hidden_size"], m["intermediate_size"]
        self.norm1, self.norm2 = norm(), norm()
        self.attention = MultiHead(m, a) if a["type"] == "mha" else Latent(m, a)
        self.gated = m.get("ffn", "swiglu") == "swiglu"
        self.up = nn.Linear(D, (2 if self.gated else 1) * width, bias=False)
        self.down = nn.Linear(width, D, bias=False)

    def forward(self, x, ids, rope):
        x = x + self.attention(self.norm1(x), ids, rope)
        h = self.up(self.norm2(x))
        if self.gated:
            gate, up = h.chunk(2, -1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(h, approximate="tanh")
        return x + self.down(h)


class Decoder(nn.Module):
    def __init__(self, m):
        super().__init__()
        eps, D = m.get("norm_eps", 1e-6), m["hidden_size"]
        norm = (lambda: nn.RMSNorm(D, eps)) if m.get("norm", "rmsnorm") == "rmsnorm" else (lambda: nn.LayerNorm(D, eps))
        self.theta = m.get("rope_theta", 10000)
        self.embedding = nn.Embedding(m["vocab_size"], D)
        self.blocks = nn.ModuleList(Block(m, norm) for _ in range(m["num_hidden_layers"]))
        self.norm, self.head = norm(), nn.Linear(D, m["vocab_size"], bias=False)
        if m.get("tie_word_embeddings", True):
            self.head.weight = self.embedding.weight
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=1.0 if "table" in name else m.get("initializer_range", 0.02))

    def forward(self, ids, targets):
        width = self.blocks[0].attention.rope_width
        frequency = self.theta ** (-torch.arange(0, width, 2, device=ids.device) / width)
        angle = torch.arange(ids.shape[1], device=ids.device)[:, None] * frequency
        dtype = torch.bfloat16 if ids.is_cuda else torch.float32
        rope = (angle.cos().to(dtype), angle.sin().to(dtype))
        x = self.embedding(ids).to(dtype)
        for block in self.blocks:
            x = block(x, ids, rope)
        return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), targets.flatten())


def load(path, overrides):
    with open(path, encoding="utf-8") as file:
        config = yaml.safe_load(file)
    for item in overrides:
        key, _, value = item.partition("=")
        at = config
        *parents, last = key.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        # YAML 1.1 takes 3e-4 for text.
        at[last] = yaml.safe_load(value)
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--peak", type=float, default=989.4, help="TFLOP/s that MFU counts against")
    args = parser.parse_args()
    config = load(args.config, args.overrides)
    m, train, gpu = config["model"], config["train"], args.device == "cuda"
    T, B = config["data"]["sequence_length"], train["micro_batch_size"]
    accumulation = train["batch_tokens"] // (B * T)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(config["run"].get("seed", 1337))
    model = Decoder(m).to(args.device)
    named = list(model.named_parameters())
    tables = sum(p.numel() for n, p in named if "table" in n)
    looked_up = 0 if m.get("tie_word_embeddings", True) else model.embedding.weight.numel()
    matmul = sum(p.numel() for n, p in named if p.dim() > 1) - tables - looked_up
    attention = model.blocks[0].attention
    widths = 2 * attention.width if isinstance(attention, MultiHead) else (
        attention.nope + attention.rope_width + attention.value)
    flops = 6 * matmul + 3 * m["num_hidden_layers"] * m["num_attention_heads"] * T * widths
    o = train.get("optimizer", {})
    groups = [{"params": [p for n, p in named if p.dim() > 1 and "table" not in n], "weight_decay": 0.1},
              {"params": [p for n, p in named if p.dim() == 1 or "table" in n], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=float(o.get("lr", 6e-4)), betas=(0.9, 0.95), fused=gpu)
    run = torch.compile(model) if gpu and not args.no_compile else model
    ids = torch.randint(0, m["vocab_size"], (accumulation, B, T + 1), device=args.device)
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]

    def step():
        for batch in ids:
            cast = torch.autocast("cuda", torch.bfloat16, enabled=gpu)
            with cast, sdpa_kernel(backends, set_priority=True) if gpu else contextlib.nullcontext():
                loss = run(batch[:, :-1], batch[:, 1:]) / accumulation
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), train.get("grad_clip", 1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    wait = torch.cuda.synchronize if gpu else (lambda: None)
    times = []
    for i in range(args.warmup + args.steps):
        wait()
        start = time.perf_counter()
        loss = step()
        wait()
        if i >= args.warmup:
            times.append(time.perf_counter() - start)
    seconds = sorted(times)[len(times) // 2]
    tokens = accumulation * B * T
    tflops = tokens * flops / seconds / 1e12
    print(json.dumps({
        "name": config["run"]["name"], "peer": f"torch {torch.__version__}", "attn": m["attention"]["type"],
        "device": torch.cuda.get_device_name() if gpu else "cpu", "params": sum(p.numel() for _, p in named),
        "matmul_params": matmul, "batch": B, "seq": T, "accumulation": accumulation, "ms": round(seconds * 1e3, 3),
        "tokens_per_s_per_gpu": round(tokens / seconds), "tflops": round(tflops, 1),
        "mfu": round(tflops / args.peak, 4) if gpu else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
        "loss": round(loss.item() * accumulation, 3)}), flush=True)


if __name__ == "__main__":
    main()
