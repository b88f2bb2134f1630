#!/usr/bin/env python3
"""Exports small models of every kind, checks the files with safetensors, and imports them again, bit for bit.

    pip install numpy h5py safetensors tokenizers        (torch and transformers too, for the second half)
    tests/interop/check_export.py build/egmla [--work FOLDER] [--require-torch]

Where torch and transformers are importable, each export is loaded with AutoModelForCausalLM and AutoTokenizer: no
warning about weights; each token's loss on 64 random sequences as `egmla eval --per-token` gives it, to 1e-4 in fp32;
64 greedy tokens as `egmla generate` writes them; the same tokens without a cache and in a padded batch; and what
save_pretrained writes is imported with the same weights.

A Llama that others wrote (here by the safetensors package, in two files; by transformers where it is importable) comes
in bit for bit and trains on through run.init_from.
"""

import argparse
import importlib.util
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

import h5py
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

SEQUENCES, LENGTH, NEW_TOKENS = 64, 64, 64
TOLERANCE = 1e-4
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form, and void; " * 40
PROMPT = "And the earth was"

LATENT = ["model.attention.kv_lora_rank=24", "model.attention.qk_nope_head_dim=16", "model.attention.qk_rope_head_dim=8",
          "model.attention.v_head_dim=12"]
GPT2 = ["model.norm=layernorm", "model.ffn=gelu"]
GATE = "model.attention.gate."


def egmla_model(*gate):
    return ["model.attention.type=egmla", *LATENT, f"{GATE}embed_dim=16", *(GATE + key for key in gate)]


# name: (class, overrides)
VARIANTS = {
    "mha": ("LlamaForCausalLM", ["model.attention.type=mha"]),
    "gqa": ("LlamaForCausalLM", ["model.attention.type=mha", "model.attention.num_key_value_heads=2",
                                 "model.attention.head_dim=24", "model.tie_word_embeddings=false"]),
    "mha_gpt2_block": ("EgmlaForCausalLM", ["model.attention.type=mha", *GPT2, "model.rope_interleave=true"]),
    "mla": ("DeepseekV3ForCausalLM", ["model.attention.type=mla", *LATENT]),
    "mla_q_lora": ("DeepseekV3ForCausalLM", ["model.attention.type=mla", *LATENT, "model.attention.q_lora_rank=20",
                                             "model.rope_interleave=false", "model.tie_word_embeddings=false"]),
    "egmla": ("EgmlaForCausalLM", egmla_model()),
    "egmla_gpt2_block": ("EgmlaForCausalLM", egmla_model() + GPT2 + ["model.attention.q_lora_rank=20"]),
    "egmla_latent": ("EgmlaForCausalLM", egmla_model("position=latent")),
    "egmla_k": ("EgmlaForCausalLM", egmla_model("targets=k")),
    "egmla_v_per_head": ("EgmlaForCausalLM", egmla_model("targets=v", "norm=per_head")),
    "egmla_separate": ("EgmlaForCausalLM", egmla_model("norm=separate", "activation=sigmoid")),
    "egmla_per_head": ("EgmlaForCausalLM", egmla_model("norm=per_head", "activation=tanh")),
    "egmla_bare": ("EgmlaForCausalLM", egmla_model("norm=none", "activation=silu", "offset=1.0", "init_std=0.1")),
    "egmla_shared": ("EgmlaForCausalLM", egmla_model("share_layers=2") + ["model.tie_word_embeddings=false"]),
}
# Steps; the others keep their random weights. A gate's norms are all ones until they are trained.
TRAINED = dict.fromkeys(["mha", "mla", "egmla", "egmla_latent", "egmla_k", "egmla_v_per_head", "egmla_separate",
                         "egmla_per_head"], 20)


def require(ok, message):
    if not ok:
        sys.exit(f"check_export: {message}")


def run(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True)
    require(done.returncode == 0, f"egmla {' '.join(map(str, arguments))}: {done.stderr.decode()[-800:]}")
    return done.stdout


def write_shard(path, ids):
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype="<u2").tobytes())


def prepare(binary, work):
    """A tokenizer and shards of random ids; the configuration that all variants share."""
    (work / "text.txt").write_text(TEXT)
    run(binary, "tokenizer", "train", work / "text.txt", "--vocab-size", 300, "--out", work / "tokenizer.json")
    vocabulary = 1 + max(json.loads((work / "tokenizer.json").read_text())["model"]["vocab"].values())
    rng = np.random.default_rng(1)
    ids = rng.integers(0, vocabulary, SEQUENCES * LENGTH + 1)
    write_shard(work / "train.bin", rng.integers(0, vocabulary, 20000))
    write_shard(work / "val.bin", ids)
    (work / "config.yaml").write_text(json.dumps({  # YAML holds JSON
        "run": {"device": "cpu", "name": "check"},
        "model": {"vocab_size": vocabulary, "max_position_embeddings": 256, "hidden_size": 64, "intermediate_size": 96,
                  "num_hidden_layers": 3, "num_attention_heads": 4},
        "data": {"train": str(work / "train.bin"), "val": str(work / "val.bin"),
                 "tokenizer": str(work / "tokenizer.json"), "sequence_length": LENGTH},
        "train": {"batch_tokens": 512, "max_steps": 20, "optimizer": {"lr": 3e-3}, "eval": {"every": 0}}}))
    return ids


def weights_of(checkpoint):
    with h5py.File(checkpoint) as file:
        return {name: file["model"][name][...] for name in file["model"]}


def to_bf16(values):
    """Rounds floats to the 16 bits of bfloat16, nearest even."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def check_files(name, weights, fp32, bf16, expected_class):
    config = json.loads((fp32 / "config.json").read_text())
    require(config["architectures"] == [expected_class], f"{name}: class {config['architectures']}")
    own = expected_class == "EgmlaForCausalLM"
    require((fp32 / "modeling_egmla.py").exists() == own, f"{name}: modeling_egmla.py")
    if expected_class == "DeepseekV3ForCausalLM":
        require("q_lora_rank" in config and config["first_k_dense_replace"] == config["num_hidden_layers"] and
                config["num_mtp_layers"] == 0 and "n_routed_experts" not in config, f"{name}: {config}")
    tensors = load_file(fp32 / "model.safetensors")
    require(set(tensors) == set(weights), f"{name}: tensors {set(tensors) ^ set(weights)}")
    for path, values in weights.items():
        same = tensors[path].dtype == np.float32 and np.array_equal(tensors[path].view("u4"), values.view("u4"))
        require(same, f"{name}: {path} differs from the checkpoint")
    with safe_open(bf16 / "model.safetensors", framework="np") as file:
        require(file.metadata() == {"format": "pt"}, f"{name}: metadata {file.metadata()}")
        require(set(file.keys()) == set(weights), f"{name}: bf16 tensors")
    data = (bf16 / "model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for path, entry in json.loads(data[8:start]).items():
        if path == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        found = np.frombuffer(data[start + begin:start + end], dtype="<u2").reshape(entry["shape"])
        require(entry["dtype"] == "BF16" and np.array_equal(found, to_bf16(weights[path])), f"{name}: {path} in bf16")


def check_variant(binary, work, name):
    """Trains or draws, exports, checks the files, imports; returns the run and its fp32 export."""
    expected_class, overrides = VARIANTS[name]
    out = work / name
    run(binary, "train", work / "config.yaml", f"run.dir={out}", f"train.max_steps={TRAINED.get(name, 0)}", *overrides)
    fp32, bf16 = out / "fp32", out / "bf16"
    run(binary, "export", out, "--format", "hf", "--out", fp32, "--dtype", "fp32")
    run(binary, "export", out, "--format", "hf", "--out", bf16)
    weights = weights_of(max((out / "checkpoints").glob("step-*.h5")))
    check_files(name, weights, fp32, bf16, expected_class)
    run(binary, "import", fp32, "--out", out / "imported.h5", "--config", out / "imported.yaml")
    back = weights_of(out / "imported.h5")
    require(set(back) == set(weights), f"{name}: imported {set(back) ^ set(weights)}")
    for path, values in weights.items():
        require(np.array_equal(back[path].view("u4"), values.view("u4")), f"{name}: {path} differs after the import")
    print(f"{name}: {len(weights)} tensors, exported as {expected_class} and imported bit for bit")
    return out, fp32


def load(folder):
    """Model and tokenizer; whatever transformers logs while loading is an error."""
    import logging
    import transformers
    messages = []

    class Keep(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    keep = Keep(level=logging.WARNING)
    transformers.utils.logging.get_logger("transformers").addHandler(keep)
    own = (folder / "modeling_egmla.py").exists()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own,
                                                                    output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=own)
    transformers.utils.logging.get_logger("transformers").removeHandler(keep)
    problems = [f"{key}: {value}" for key, value in info.items() if value]
    require(not problems and not messages, f"{folder}: loading says {problems} {messages}")
    return model.float().eval(), tokenizer


def check_resaved(binary, name, out, model):
    """What transformers itself writes comes in too."""
    model.save_pretrained(out / "resaved")
    run(binary, "import", out / "resaved", "--out", out / "resaved.h5")
    back, weights = weights_of(out / "resaved.h5"), weights_of(out / "imported.h5")
    same = set(back) == set(weights) and all(np.array_equal(back[path], weights[path]) for path in weights)
    require(same, f"{name}: save_pretrained and import change the weights")


def worst_loss(model, out, ids):
    """The largest difference of a token's loss between the model and losses.txt."""
    import torch
    expected = np.loadtxt(out / "losses.txt").reshape(SEQUENCES, LENGTH)
    inputs = torch.tensor(ids[:-1]).view(SEQUENCES, LENGTH)
    targets = torch.tensor(ids[1:]).view(SEQUENCES, LENGTH)
    with torch.no_grad():
        logits = model(inputs).logits.double()
    losses = (torch.logsumexp(logits, -1) - logits.gather(-1, targets[..., None])[..., 0]).numpy()
    return np.abs(losses - expected).max()


def check_losses(binary, name, out, model, ids):
    run(binary, "eval", out, "run.device=cpu", "--per-token", out / "losses.txt")
    worst = worst_loss(model, out, ids)
    require(worst < TOLERANCE, f"{name}: a token's loss differs by {worst:.2e}")
    return worst


def check_generation(binary, name, out, model, tokenizer):
    import torch
    text = run(binary, "generate", out, "--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", NEW_TOKENS,
               "run.device=cpu")
    prompt = tokenizer(PROMPT, return_tensors="pt")
    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    found = model.generate(**prompt, **greedy)[0]
    body = [i for i in found.tolist() if i != tokenizer.eos_token_id]
    expected = text.decode(errors="replace").removesuffix("\n")
    require(tokenizer.decode(body) == expected, f"{name}: generate() wrote {tokenizer.decode(body)!r}, egmla {expected!r}")
    slow = model.generate(**prompt, **greedy, use_cache=False)[0]
    require(torch.equal(found, slow), f"{name}: the tokens differ without a cache")
    tokenizer.padding_side = "left"
    batch = tokenizer([PROMPT, PROMPT + " without form, and void"], return_tensors="pt", padding=True)
    padded = model.generate(**batch, **greedy)[0]
    new = padded[batch.input_ids.shape[1]:][:len(found) - prompt.input_ids.shape[1]]
    require(torch.equal(new, found[prompt.input_ids.shape[1]:]), f"{name}: the tokens differ in a padded batch")
    beams = model.generate(**prompt, max_new_tokens=12, num_beams=3, do_sample=False)
    plain = model.generate(**prompt, max_new_tokens=12, num_beams=3, do_sample=False, use_cache=False)
    require(torch.equal(beams, plain), f"{name}: beams differ without a cache")


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
         "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "vocab_size": 300, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
         "initializer_range": 0.02, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}


def llama_shapes():
    width, inner, grouped = LLAMA["hidden_size"], LLAMA["intermediate_size"], 16
    shapes = {"model.embed_tokens.weight": (300, width), "model.norm.weight": (width,), "lm_head.weight": (300, width)}
    for layer in range(LLAMA["num_hidden_layers"]):
        for name, shape in {
                "self_attn.q_proj": (width, width), "self_attn.k_proj": (grouped, width),
                "self_attn.v_proj": (grouped, width), "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width),
                "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner), "input_layernorm": (width,),
                "post_attention_layernorm": (width,)}.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes


def write_llama(folder):
    """A directory as others publish it: two files and their index, no tokenizer. Returns its weights."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    weights = {name: 0.1 * rng.standard_normal(shape, dtype="f4") for name, shape in llama_shapes().items()}
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({
        "metadata": {"total_size": sum(each.nbytes for each in weights.values())},
        "weight_map": {name: file for file, held in files.items() for name in held}}))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return weights


def check_llama(binary, work, folder, weights):
    """Import, then run.init_from: the run begins with the directory's weights and learns. Returns the import."""
    imported, config = work / f"{folder.name}.h5", work / f"{folder.name}.yaml"
    run(binary, "import", folder, "--out", imported, "--config", config)
    begun = work / f"{folder.name}-begun"
    write_shard(work / "pattern.bin", np.arange(5000) % 50)
    data = [f"data.train={work / 'pattern.bin'}", f"data.sequence_length={LENGTH}", "run.device=cpu",
            "train.batch_tokens=512", "train.micro_batch_size=8", "train.optimizer.lr=3e-3"]
    run(binary, "train", config, f"run.dir={begun}", f"run.init_from={folder}", "train.max_steps=0", *data)
    for source in imported, begun / "checkpoints" / "step-00000000.h5":
        found = weights_of(source)
        require(set(found) == set(weights), f"{folder.name}: {source.name} holds {set(found) ^ set(weights)}")
        for name, values in weights.items():
            require(np.array_equal(found[name].view("u4"), values.view("u4")), f"{folder.name}: {name} differs")
    trained = work / f"{folder.name}-trained"
    run(binary, "train", config, f"run.dir={trained}", f"run.init_from={folder}", "train.max_steps=20",
        "train.schedule.warmup_steps=0", *data)
    losses = [json.loads(row)["loss"] for row in (trained / "metrics.jsonl").read_text().splitlines()]
    require(len(losses) == 20 and losses[-1] < losses[0] - 0.1, f"{folder.name}: the losses of training on are {losses}")
    print(f"{folder.name}: imported bit for bit, trained on from a loss of {losses[0]:.3f} to {losses[-1]:.3f}")
    return imported


def check_llama_of_transformers(binary, work, ids):
    import torch
    import transformers
    torch.manual_seed(3)
    fields = {key: value for key, value in LLAMA.items() if key not in ("architectures", "model_type")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).float().eval()
    folder = work / "llama-of-transformers"
    model.save_pretrained(folder, max_shard_size="40KB")
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    imported = check_llama(binary, work, folder, weights)
    (work / "llama-losses").mkdir()
    run(binary, "eval", imported, "run.device=cpu", f"data.sequence_length={LENGTH}", "--data", work / "val.bin",
        "--per-token", work / "llama-losses" / "losses.txt")
    worst = worst_loss(model, work / "llama-losses", ids)
    require(worst < TOLERANCE, f"llama-of-transformers: a token's loss differs by {worst:.2e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("egmla")
    parser.add_argument("--work", type=pathlib.Path, help="folder to keep; default: a temporary one")
    parser.add_argument("--require-torch", action="store_true", help="fail where torch and transformers are missing")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    binary = str(pathlib.Path(arguments.egmla).resolve())
    torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    require(torch or not arguments.require_torch, "torch and transformers are not importable")
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or pathlib.Path(temporary)).resolve()
        if arguments.work:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        ids = prepare(binary, work)
        check_llama(binary, work, work / "llama", write_llama(work / "llama"))
        if torch:
            check_llama_of_transformers(binary, work, ids)
        for name in arguments.only:
            out, folder = check_variant(binary, work, name)
            if torch:
                model, tokenizer = load(folder)
                require(type(model).__name__ == VARIANTS[name][0], f"{name}: loaded as {type(model).__name__}")
                worst = check_losses(binary, name, out, model, ids)
                check_generation(binary, name, out, model, tokenizer)
                check_resaved(binary, name, out, model)
                print(f"{name}: loads in transformers; losses agree to {worst:.1e}; {NEW_TOKENS} greedy tokens agree")
    if not torch:
        print("torch or transformers is not importable: loading, losses and generate() were not checked")


if __name__ == "__main__":
    main()
