"""Models of a few kilobytes with random weights that are made for vectors, by what their header says.

"bert" and "nomic-bert" are as those that people use: no memory of keys and values, no logits. "llama" could write as
well, and its header names a pooling. All read lower-case words by a WordPiece vocabulary.
"""

import itertools
import struct
from pathlib import Path

from tests.node.engine import tiny_models
from tests.node.engine.gguf_files import BOOL, GgufFile
from tests.node.engine.tiny_models import HEADS, INNER, LAYERS, WIDTH

BERTS = ("bert", "nomic-bert")
#: enum llama_pooling_type
NONE, MEAN, FIRST, LAST, RANK = range(5)

#: What an encoder puts around a text.
AROUND = 2

_SPECIAL = {"padding": "[PAD]", "unknown": "[UNK]", "cls": "[CLS]", "seperator": "[SEP]", "mask": "[MASK]"}
_WORDS = ("the", "cat", "sat", "on", "mat", "dog", "ran")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write(
    kind: str,
    path: Path,
    pooling: int | None = MEAN,
    context: int = 512,
    template: str = "",
    causal: bool | None = None,
) -> None:
    """`pooling`, `causal`: what the header names; None: nothing (of `causal`: nothing but in a BERT)."""
    file = GgufFile()
    file.text("general.architecture", kind)
    if pooling is not None:
        file.u32(f"{kind}.pooling_type", pooling)
    if causal is None and kind in BERTS:
        causal = False
    if causal is not None:
        file.keys.append((f"{kind}.attention.causal", BOOL, struct.pack("<?", causal)))
    if template:
        file.text("tokenizer.chat_template", template)
    tokens = _tokens()
    file.text("tokenizer.ggml.model", "bert").texts("tokenizer.ggml.tokens", tokens)
    file.u32("tokenizer.ggml.token_type_count", 2)
    for token, name in enumerate(_SPECIAL):
        file.u32(f"tokenizer.ggml.{name}_token_id", token)
    file.u32(f"{kind}.context_length", context).u32(f"{kind}.block_count", LAYERS)
    file.u32(f"{kind}.embedding_length", WIDTH).u32(f"{kind}.feed_forward_length", INNER)
    file.u32(f"{kind}.attention.head_count", HEADS)
    file.f32(f"{kind}.attention.layer_norm_epsilon", 1e-5).f32(f"{kind}.attention.layer_norm_rms_epsilon", 1e-5)
    shapes = _bert_shapes(kind, len(tokens), context) if kind in BERTS else tiny_models.shapes(kind, len(tokens))
    tiny_models.add_tensors(file, shapes)
    path.write_bytes(file.build())


def _tokens() -> list[str]:
    """The beginning of a word is marked, as llama.cpp wants it of WordPiece. More than 200, as any real vocabulary."""
    pairs = ["".join(pair) for pair in itertools.product("qvxz", _LETTERS)]
    return [*_SPECIAL.values(), *_LETTERS, *pairs, *(f"\u2581{word}" for word in (*_WORDS, *_LETTERS, *pairs))]


def _bert_shapes(kind: str, vocabulary: int, context: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (WIDTH, vocabulary), "token_types.weight": (WIDTH, 2)}
    if kind == "bert":
        shapes["position_embd.weight"] = (WIDTH, context)
    norms = ["token_embd_norm"]
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norms += [block + "attn_output_norm", block + "layer_output_norm"]
        shapes |= {block + "ffn_up.weight": (WIDTH, INNER), block + "ffn_down.weight": (INNER, WIDTH)}
        shapes[block + "attn_output.weight"] = (WIDTH, WIDTH)
        if kind == "bert":
            for part in ("attn_q", "attn_k", "attn_v"):
                shapes |= {f"{block}{part}.weight": (WIDTH, WIDTH), f"{block}{part}.bias": (WIDTH,)}
            shapes |= {block + "attn_output.bias": (WIDTH,), block + "ffn_up.bias": (INNER,)}
            shapes[block + "ffn_down.bias"] = (WIDTH,)
        else:
            shapes |= {block + "attn_qkv.weight": (WIDTH, 3 * WIDTH), block + "ffn_gate.weight": (WIDTH, INNER)}
    return shapes | {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}
