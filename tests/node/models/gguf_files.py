"""Small GGUF files of any content, whose headers are real."""

from pathlib import Path

from tests.node.engine.gguf_files import GgufFile


def gguf_bytes(name: str = "Tiny", elements: int = 1024, licence: str = "apache-2.0", fill: bytes = b"w") -> bytes:
    """One F32 tensor of `elements`, filled with `fill`."""
    file = GgufFile(data=(fill * (4 * elements))[: 4 * elements])
    file.text("general.architecture", "llama").text("general.name", name).text("general.license", licence)
    file.u32("general.file_type", 0).u32("llama.context_length", 2048)
    file.tensors = [("weights", (elements,), 0, 0)]
    return file.build()


def write_gguf(path: Path, name: str = "Tiny", elements: int = 1024, fill: bytes = b"w") -> bytes:
    content = gguf_bytes(name, elements, fill=fill)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content
