"""Small GGUF files of any content, whose headers are real."""

import struct
from pathlib import Path


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _pair(key: str, value: str | int) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", 8) + _text(value)
    return _text(key) + struct.pack("<II", 4, value)


def gguf_bytes(name: str = "Tiny", elements: int = 1024, licence: str = "apache-2.0", fill: bytes = b"w") -> bytes:
    """One F32 tensor of `elements`, filled with `fill`."""
    pairs = [
        _pair("general.architecture", "llama"),
        _pair("general.name", name),
        _pair("general.license", licence),
        _pair("general.file_type", 0),
        _pair("llama.context_length", 2048),
    ]
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs)
    header += _text("weights") + struct.pack("<IQIQ", 1, elements, 0, 0)
    header += bytes(-len(header) % 32)
    return header + (fill * (4 * elements))[: 4 * elements]


def write_gguf(path: Path, name: str = "Tiny", elements: int = 1024, fill: bytes = b"w") -> bytes:
    content = gguf_bytes(name, elements, fill=fill)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content
