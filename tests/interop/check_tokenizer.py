#!/usr/bin/env python3
"""Compares `egmla tokenizer` with Hugging Face's `tokenizers`, to the last id, on seeded text of every kind.

    pip install tokenizers
    tests/interop/check_tokenizer.py build/egmla [--bytes N] [--seed N]

Tokenizers: GPT-2's two files; GPT-2 as `tokenizers` saves it; with a prefix space; with added tokens of several kinds;
one trained by egmla, whose merges must equal those that `tokenizers` learns from the same text.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

GPT2 = pathlib.Path(__file__).parent.parent / "data" / "gpt2"
SCRIPTS = [(0x21, 0x7E), (0xA1, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F),
           (0x1100, 0x11FF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2460, 0x24FF), (0x3040, 0x30FF), (0x3400, 0x3500),
           (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF01, 0xFFEE), (0x10400, 0x1044F), (0x1D400, 0x1D7FF),
           (0x1F300, 0x1FAFF), (0x20000, 0x20100), (0x1CCF0, 0x1CCF9), (0x105C0, 0x105F3), (0xE0100, 0xE01EF)]
SPACES = " \t\n\r\f\v\x1c\x1f\x85\xa0\u1680\u2003\u2009\u200b\u200d\u2028\u2029\u202f\u205f\u3000\ufeff"
WORDS = "the of and In beginning created heaven earth light was without form void darkness deep waters said let".split()


def piece(rng):
    kind = rng.randrange(12)
    if kind <= 3:
        return " " + rng.choice(WORDS)
    if kind == 4:
        return rng.choice(["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", " 's", "''s", "'", "\u2019s", "n't"])
    if kind == 5:
        return "".join(rng.choice("0123456789\u0663\u00b2\u00bd\u2167") for _ in range(rng.randint(1, 8)))
    if kind == 6:
        return "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 6)))
    if kind == 7:
        return rng.choice(["\r\n", "\n\n", "  ", "   \n", " " * 40, "\t\t", "\n ", " \n"])
    if kind == 8:
        return rng.choice(["\U0001F469\u200d\U0001F680", "\U0001F1EB\U0001F1F7", "e\u0301", "\u0915\u094d\u0937", "\u1112\u1161\u11ab"])
    if kind == 9:
        return "".join(rng.choice("!?.,;:-_()[]{}<>|/\\\"`~@#$%^&*+=") for _ in range(rng.randint(1, 5)))
    low, high = rng.choice(SCRIPTS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 7)))


def every_character():
    """Each code point of the planes in use beside a letter, a digit, a sign and white space."""
    codes = [*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200), 0xF0000, 0x10FFFF]
    return "".join(f"a{c}1{c}!{c} {c}\n" for c in map(chr, codes))


def make_text(size, seed):
    rng = random.Random(seed)
    pieces, total = [], 0
    while total < size:
        pieces.append(piece(rng))
        total += len(pieces[-1].encode())
    return "".join(pieces)


def egmla(binary, tokenizer, text, *flags):
    command = [binary, "tokenizer", "encode", "--tokenizer", str(tokenizer), *flags]
    output = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
    return [int(word) for word in output.split()]


def compare(name, binary, path, reference, text):
    found, expected = egmla(binary, path, text), reference.encode(text).ids
    for i, (a, b) in enumerate(zip(found, expected)):
        if a != b:
            sys.exit(f"{name}: token {i} is {a}; expected {b}, near {reference.decode(expected[max(0, i - 5):i + 5])!r}")
    if len(found) != len(expected):
        sys.exit(f"{name}: {len(found)} tokens; expected {len(expected)}")
    command = [binary, "tokenizer", "decode", "--tokenizer", str(path)]
    decoded = subprocess.run(command, input=" ".join(map(str, found)).encode(), capture_output=True, check=True).stdout
    if decoded != reference.decode(expected, skip_special_tokens=False).encode():
        sys.exit(f"{name}: the ids decode to other bytes")
    print(f"{name}: {len(found)} tokens of {len(text.encode())} bytes agree")


def gpt2(prefix_space=False):
    tokenizer = Tokenizer(models.BPE.from_file(str(GPT2 / "encoder.json"), str(GPT2 / "vocab.bpe")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def with_added_tokens():
    tokenizer = gpt2()
    tokenizer.add_special_tokens(["<|", "<|x|>", "\u2603"])
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 12)])
    tokenizer.add_tokens([AddedToken("earth light", normalized=False), AddedToken("earth", normalized=False), "the "])
    return tokenizer


def check_training(binary, folder, text):
    source, path = folder / "text.txt", folder / "trained.json"
    source.write_bytes(text.encode())
    command = [binary, "tokenizer", "train", str(source), "--vocab-size", "2000", "--out", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=2000, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    trained = Tokenizer.from_file(str(path))
    if trained.get_vocab() != reference.get_vocab():
        extra = sorted(set(trained.get_vocab().items()) ^ set(reference.get_vocab().items()), key=lambda item: item[1])
        sys.exit(f"trained: the vocabulary differs from that of `tokenizers`, first at {extra[:4]}")
    print("trained: the vocabulary equals that of `tokenizers`")
    return path, trained


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("egmla")
    parser.add_argument("--bytes", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    text = make_text(arguments.bytes, arguments.seed)
    ends = "<|endoftext|>".join(make_text(2000, arguments.seed + i) for i in range(100)) + "<|endoftext|><|x|>"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for title, reference in {"gpt2.json": gpt2(), "prefix": gpt2(True), "added": with_added_tokens()}.items():
            reference.save(str(folder / title))
            compare(title, arguments.egmla, folder / title, reference, text)
            compare(f"{title}, end of text", arguments.egmla, folder / title, reference, ends)
            compare(f"{title}, empty", arguments.egmla, folder / title, reference, "")
        compare("gpt2, every character", arguments.egmla, GPT2, gpt2(), every_character())
        compare("gpt2, two files", arguments.egmla, GPT2 / "encoder.json", gpt2(), text)
        path, trained = check_training(arguments.egmla, folder, make_text(arguments.bytes // 4, arguments.seed + 1))
        compare("trained", arguments.egmla, path, trained, text)
        compare("trained, end of text", arguments.egmla, path, trained, ends)


if __name__ == "__main__":
    main()
