"""Models of a few kilobytes with random weights: no language in them, but every kind of memory that llama.cpp has.

"llama" keeps keys and values, "gemma2" keeps some layers' in a window of 16 tokens, "mamba" is recurrent.
"""

import struct
from pathlib import Path

import numpy as np

from tests.node.engine.gguf_files import F32, U32, GgufFile

VOCABULARY, WIDTH, LAYERS, HEADS, INNER, STATE, KERNEL, RANK, WINDOW = 64, 32, 4, 4, 64, 8, 4, 4, 16
KINDS = ("llama", "gemma2", "mamba")


def write(kind: str, path: Path) -> None:
    path.write_bytes(made(kind).build())


def made(kind: str) -> GgufFile:
    file = GgufFile()
    file.text("general.architecture", kind).text("tokenizer.ggml.model", "no_vocab")
    numbers = {
        "vocab_size": VOCABULARY,
        "context_length": 512,
        "block_count": LAYERS,
        "embedding_length": WIDTH,
        "feed_forward_length": 0 if kind == "mamba" else INNER,
        "attention.head_count": 0 if kind == "mamba" else HEADS,
        "attention.sliding_window": WINDOW if kind == "gemma2" else 0,
        "ssm.conv_kernel": KERNEL,
        "ssm.inner_size": INNER,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": RANK,
    }
    file.keys += [(f"{kind}.{name}", U32, struct.pack("<I", value)) for name, value in numbers.items()]
    file.keys.append((f"{kind}.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)))
    add_tensors(file, shapes(kind))
    return file


def add_tensors(file: GgufFile, shapes: dict[str, tuple[int, ...]]) -> None:
    """Drawn at random, always the same."""
    draw = np.random.default_rng(3)
    for name, shape in shapes.items():
        values = draw.normal(0.0, 0.4, int(np.prod(shape))).astype("<f4")
        if "norm" in name:
            values = np.abs(values) + np.float32(0.5)
        elif name.endswith("ssm_a"):
            values = -np.abs(values)
        file.tensors.append((name, shape, 0, len(file.data)))
        file.data += values.tobytes() + b"\0" * (-values.nbytes % 32)


def shapes(kind: str, vocabulary: int = VOCABULARY) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (WIDTH, vocabulary), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes[block + "attn_norm.weight"] = (WIDTH,)
        if kind == "mamba":
            shapes |= {
                block + "ssm_in.weight": (WIDTH, 2 * INNER),
                block + "ssm_conv1d.weight": (KERNEL, INNER),
                block + "ssm_conv1d.bias": (INNER,),
                block + "ssm_x.weight": (INNER, RANK + 2 * STATE),
                block + "ssm_dt.weight": (RANK, INNER),
                block + "ssm_dt.bias": (INNER,),
                block + "ssm_a": (STATE, INNER),
                block + "ssm_d": (INNER,),
                block + "ssm_out.weight": (INNER, WIDTH),
            }
            continue
        shapes |= {block + f"attn_{which}.weight": (WIDTH, WIDTH) for which in ("q", "k", "v", "output")}
        shapes |= {block + f"ffn_{which}.weight": (WIDTH, INNER) for which in ("gate", "up")}
        shapes |= {block + "ffn_down.weight": (INNER, WIDTH), block + "ffn_norm.weight": (WIDTH,)}
        if kind == "gemma2":
            shapes |= {block + f"{which}.weight": (WIDTH,) for which in ("post_attention_norm", "post_ffw_norm")}
    return shapes
