"""Small GGUF files for tests, written by the specification: no model, but a header that a reader must accept."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

STRING, ARRAY, U16, U32, I32, U64, BOOL, F32 = 8, 9, 2, 4, 5, 10, 7, 6


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


@dataclass
class GgufFile:
    """`build` gives the bytes; every part can be replaced to make a bad file."""

    version: int = 3
    keys: list[tuple[str, int, bytes]] = field(default_factory=list)
    tensors: list[tuple[str, tuple[int, ...], int, int]] = field(default_factory=list)  # name, shape, type, offset
    data: bytes = b""

    def text(self, key: str, value: str) -> "GgufFile":
        self.keys.append((key, STRING, string(value)))
        return self

    def u32(self, key: str, value: int) -> "GgufFile":
        self.keys.append((key, U32, struct.pack("<I", value)))
        return self

    def f32(self, key: str, value: float) -> "GgufFile":
        self.keys.append((key, F32, struct.pack("<f", value)))
        return self

    def texts(self, key: str, values: list[str]) -> "GgufFile":
        body = struct.pack("<IQ", STRING, len(values)) + b"".join(map(string, values))
        self.keys.append((key, ARRAY, body))
        return self

    def header(self) -> bytes:
        out = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        for key, kind, body in self.keys:
            out += string(key) + struct.pack("<I", kind) + body
        for name, shape, kind, offset in self.tensors:
            out += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
            out += struct.pack("<IQ", kind, offset)
        return out

    def build(self) -> bytes:
        header = self.header()
        return header + b"\0" * (-len(header) % 32) + self.data


def write_parts(file: GgufFile, folder: Path, count: int, name: str = "model") -> list[Path]:
    """The same model in so many files, as llama.cpp splits one: the first has the keys, each some of the tensors."""
    ends = [offset for _, _, _, offset in file.tensors[1:]] + [len(file.data)]
    size = -(-len(file.tensors) // count)
    paths = []
    for number in range(count):
        part = GgufFile(keys=list(file.keys) if number == 0 else [])
        part.keys += [("split.no", U16, struct.pack("<H", number)), ("split.count", U16, struct.pack("<H", count))]
        part.keys.append(("split.tensors.count", I32, struct.pack("<i", len(file.tensors))))
        taken = range(number * size, min((number + 1) * size, len(file.tensors)))
        for at in taken:
            tensor, shape, kind, offset = file.tensors[at]
            part.tensors.append((tensor, shape, kind, len(part.data)))
            part.data += file.data[offset : ends[at]]
            part.data += b"\0" * (-len(part.data) % 32)
        paths.append(folder / f"{name}-{number + 1:05}-of-{count:05}.gguf")
        paths[-1].write_bytes(part.build())
    return paths


def sample() -> GgufFile:
    """Two tensors of a tiny "llama": 64 values as F32, 64 as Q4_0."""
    file = GgufFile(data=b"\1" * (256 + 36))
    file.text("general.architecture", "llama").text("general.name", "Tiny").text("general.license", "mit")
    file.u32("general.file_type", 2).u32("llama.context_length", 512).u32("llama.block_count", 2)
    file.u32("llama.embedding_length", 64).u32("llama.attention.head_count", 4)
    file.u32("llama.attention.head_count_kv", 2)
    file.text("tokenizer.chat_template", "{{ messages[0].content }}")
    file.texts("tokenizer.ggml.tokens", ["a", "b", "語"])
    file.tensors = [("one", (64,), 0, 0), ("two", (32, 2), 2, 256)]
    return file


def lora(seed: int, strength: float = 0.3, rows: int = 576, columns: int = 1536, layers: int = 30) -> GgufFile:
    """A LoRA adapter of rank 2 on `ffn_down` of each layer, drawn at random; the default sizes are the test model's."""
    import numpy as np

    rng = np.random.default_rng(seed)
    file = GgufFile()
    file.text("general.architecture", "llama").text("general.type", "adapter").text("adapter.type", "lora")
    file.f32("adapter.lora.alpha", 2.0)
    for layer in range(layers):
        for part, shape in (("lora_a", (columns, 2)), ("lora_b", (2, rows))):
            values = rng.normal(0, strength / shape[0] ** 0.5, shape[0] * shape[1]).astype("<f4").tobytes()
            file.tensors.append((f"blk.{layer}.ffn_down.weight.{part}", shape, 0, len(file.data)))
            file.data += values + b"\0" * (-len(values) % 32)
    return file
