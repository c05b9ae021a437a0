"""Writes a GGUF file of a real size with random weights: to measure speed on a machine that has no network.

    python -m scripts.random_model FILE [--like 135M|230M|0.5B|tiny] [--quant q4_1]

The shape is that of a known small model, so a step costs what it costs there; what it writes is noise, in syllables.
The vocabulary holds the words of this project's documents with all their beginnings, so that text is cut into about as
many tokens as by a trained vocabulary; the rest are syllables. Quantised by llama.cpp itself (`scripts/quantize.py`).

Not for: anything where the words matter. Source: the GGUF specification (ggml/docs/gguf.md), llama.cpp's tensor names.
"""

import argparse
import itertools
import re
import struct
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scripts.quantize import FILE_TYPES, quantize

ROOT = Path(__file__).resolve().parent.parent
ALIGNMENT = 32
U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9
TYPE_F32, TYPE_F16 = 0, 1
#: Kinds of tokens in a vocabulary.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
WORDS_MAX = 12_000


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int


SHAPES = {
    "135M": Shape(layers=30, width=576, inner=1536, heads=9, kv_heads=3, vocabulary=49_152),
    "0.5B": Shape(layers=24, width=896, inner=4864, heads=14, kv_heads=2, vocabulary=151_936),
    # Rows of a multiple of 256, which K kinds of quantisation need.
    "230M": Shape(layers=12, width=1024, inner=4096, heads=16, kv_heads=4, vocabulary=49_152),
    "tiny": Shape(layers=2, width=256, inner=512, heads=4, kv_heads=2, vocabulary=8_192),
}


def write(path: Path, shape: Shape, seed: int = 1) -> None:
    """All matrices as F16."""
    tensors = _tensors(shape)
    keys = _keys(shape)
    draw = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
        for key, kind, body in keys:
            file.write(_string(key) + struct.pack("<I", kind) + body)
        offset = 0
        for name, dimensions in tensors.items():
            kind = TYPE_F16 if len(dimensions) > 1 else TYPE_F32
            file.write(_string(name) + struct.pack("<I", len(dimensions)))
            file.write(struct.pack(f"<{len(dimensions)}QIQ", *dimensions, kind, offset))
            size = int(np.prod(dimensions)) * (2 if kind == TYPE_F16 else 4)
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        _pad(file)
        for dimensions in tensors.values():
            if len(dimensions) == 1:
                file.write(np.ones(dimensions, "<f4").tobytes())
            else:
                values = draw.standard_normal(int(np.prod(dimensions)), dtype=np.float32)
                file.write((values / np.float32(dimensions[0] ** 0.5)).astype("<f2").tobytes())
            _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    width, inner = shape.width, shape.inner
    kv_width = width // shape.heads * shape.kv_heads
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (width, shape.vocabulary), "output_norm.weight": (width,)}
    for layer in range(shape.layers):
        found |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.attn_q.weight": (width, width),
            f"blk.{layer}.attn_k.weight": (width, kv_width),
            f"blk.{layer}.attn_v.weight": (width, kv_width),
            f"blk.{layer}.attn_output.weight": (width, width),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.ffn_gate.weight": (width, inner),
            f"blk.{layer}.ffn_up.weight": (width, inner),
            f"blk.{layer}.ffn_down.weight": (inner, width),
        }
    return found


def _keys(shape: Shape) -> list[tuple[str, int, bytes]]:
    tokens = vocabulary(shape.vocabulary)
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (shape.vocabulary - 259)]
    scores = [0.0] * 259 + [-float(place) for place in range(shape.vocabulary - 259)]
    count = len(tokens)
    return [
        ("general.architecture", STRING, _string("llama")),
        ("general.name", STRING, _string("Random")),
        ("general.file_type", U32, struct.pack("<I", 1)),
        ("llama.context_length", U32, struct.pack("<I", 8192)),
        ("llama.block_count", U32, struct.pack("<I", shape.layers)),
        ("llama.embedding_length", U32, struct.pack("<I", shape.width)),
        ("llama.feed_forward_length", U32, struct.pack("<I", shape.inner)),
        ("llama.attention.head_count", U32, struct.pack("<I", shape.heads)),
        ("llama.attention.head_count_kv", U32, struct.pack("<I", shape.kv_heads)),
        ("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        ("llama.rope.dimension_count", U32, struct.pack("<I", shape.width // shape.heads)),
        ("llama.vocab_size", U32, struct.pack("<I", count)),
        ("tokenizer.ggml.model", STRING, _string("llama")),
        ("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, count) + b"".join(map(_string, tokens))),
        ("tokenizer.ggml.scores", ARRAY, struct.pack(f"<IQ{count}f", F32, count, *scores)),
        ("tokenizer.ggml.token_type", ARRAY, struct.pack(f"<IQ{count}i", I32, count, *kinds)),
        ("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 1)),
        ("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 2)),
    ]


def vocabulary(count: int) -> list[str]:
    """Tokens, those that are merged first before others: beginnings of words by how common the words are."""
    texts = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]]
    words = Counter(
        itertools.chain.from_iterable(re.findall(r"[ ]?[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]", text) for text in texts)
    )
    found = dict.fromkeys(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    found |= dict.fromkeys(["\u2581", *(chr(code) for code in range(33, 127))])
    for word, _ in words.most_common(WORDS_MAX):
        marked = word.replace(" ", "\u2581")
        for end in range(1, len(marked) + 1):
            if len(found) < count // 2:
                found.setdefault(marked[:end])
    parts = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    for length in range(1, 5):
        for syllables in itertools.product(parts, repeat=length):
            if len(found) >= count:
                return list(found)
            found.setdefault("\u2581" + "".join(syllables))
    raise AssertionError("too few syllables")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts.random_model", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--like", choices=SHAPES, default="135M")
    parser.add_argument("--quant", choices=["f16", *FILE_TYPES], default="q4_1")
    given = parser.parse_args()
    whole = given.file if given.quant == "f16" else given.file.with_suffix(".f16.gguf")
    write(whole, SHAPES[given.like])
    if whole != given.file:
        quantize(whole, given.file, given.quant)
        whole.unlink()
    print(f"{given.file}: {given.file.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
