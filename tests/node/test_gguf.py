"""Every file is either read or refused in one sentence; nothing else may happen."""

import dataclasses
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node import gguf
from node.errors import ExitCode, KithError
from tests.node.engine.gguf_files import ARRAY, BOOL, STRING, U16, GgufFile, sample, write_parts


def refused(path: Path) -> str:
    with pytest.raises(KithError) as caught:
        gguf.read_header(path)
    assert caught.value.code == "bad-model"
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert caught.value.remedy
    assert "\n" not in caught.value.message
    return caught.value.message


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_header_tells_what_the_file_says(tmp_path: Path) -> None:
    header = gguf.read_header(written(tmp_path, sample().build()))
    assert header.architecture == "llama"
    assert header.name == "Tiny"
    assert header.licence == "mit"
    assert header.parameters == 128
    assert header.tensor_bytes == 256 + 36
    assert header.quantization == "Q4_0"
    assert header.context_tokens == 512
    assert header.vocabulary_size == 3
    assert header.chat_template == "{{ messages[0].content }}"
    assert header.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2


@pytest.mark.parametrize(
    ("named", "causal", "embeds_only", "pooled"),
    [
        (None, None, False, gguf.POOLING_MEAN),
        (0, True, False, gguf.POOLING_MEAN),
        (None, False, True, gguf.POOLING_MEAN),
        (0, False, True, gguf.POOLING_MEAN),
        (1, None, True, gguf.POOLING_MEAN),
        (2, False, True, gguf.POOLING_FIRST),
        (3, True, True, gguf.POOLING_LAST),
    ],
)
def test_header_tells_whether_a_model_is_made_for_vectors_and_how_they_are_pooled(
    tmp_path: Path, named: int | None, causal: bool | None, embeds_only: bool, pooled: int
) -> None:
    header = gguf.read_header(written(tmp_path, pooling(named, causal).build()))
    assert (header.embeds_only, header.vector_pooling()) == (embeds_only, pooled)


@pytest.mark.parametrize(("named", "why"), [(4, "ranks texts"), (5, "unknown pooling type 5")])
def test_a_model_whose_result_is_no_vector_of_a_text_is_refused(tmp_path: Path, named: int, why: str) -> None:
    header = gguf.read_header(written(tmp_path, pooling(named, None).build()))
    with pytest.raises(KithError, match=why) as caught:
        header.vector_pooling()
    assert caught.value.code == "bad-model"


def pooling(named: int | None, causal: bool | None) -> GgufFile:
    file = sample()
    if named is not None:
        file.u32("llama.pooling_type", named)
    if causal is not None:
        file.keys.append(("llama.attention.causal", BOOL, struct.pack("<?", causal)))
    return file


@pytest.mark.parametrize(
    ("trained", "wanted", "embeds", "tokens"),
    [
        (8192, 0, False, 4096),
        (512, 0, False, 512),
        (512, 1024, False, 1024),
        (8192, 0, True, 512),
        (8192, 4096, True, 512),
        (128, 4096, True, 128),
        (8192, 64, True, 64),
    ],
)
def test_context_of_a_slot(tmp_path: Path, trained: int, wanted: int, embeds: bool, tokens: int) -> None:
    header = gguf.read_header(written(tmp_path, sample().build()))
    header = dataclasses.replace(header, context_tokens=trained, pooling=1 if embeds else -1)
    assert gguf.slot_tokens(header, wanted) == tokens


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.gguf")
    assert "is a folder" in refused(tmp_path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    assert "is empty" in refused(written(tmp_path, b""))


def test_other_file_is_refused(tmp_path: Path) -> None:
    assert "is not a GGUF file" in refused(written(tmp_path, b"PK\3\4 and so on"))


@pytest.mark.parametrize(("version", "reason"), [(1, "version 1"), (9, "version 9"), (0x03000000, "big-endian")])
def test_unknown_version_is_refused(tmp_path: Path, version: int, reason: str) -> None:
    file = sample()
    file.version = version
    assert reason in refused(written(tmp_path, file.build()))


def test_truncations_are_refused(tmp_path: Path) -> None:
    data = sample().build()
    for length in range(1, len(data), 7):
        refused(written(tmp_path, data[:length]))


def test_tensors_beyond_the_end_are_refused_with_their_size(tmp_path: Path) -> None:
    assert "100 bytes of its tensors are missing" in refused(written(tmp_path, sample().build()[:-100]))


def test_sums_do_not_overflow(tmp_path: Path) -> None:
    # 2**62 * 4 values of 4 bytes are 2**66 bytes: 0 in 64 bits, which CVE-2026-27940 took for inside the file.
    file = sample()
    file.tensors = [("huge", (1 << 62, 4), 0, 0)]
    assert "absurd" in refused(written(tmp_path, file.build()))
    file.tensors = [("large", (1 << 49, 2), 0, 0)]
    assert "cut short" in refused(written(tmp_path, file.build()))
    file.tensors = [("far", (64,), 0, (1 << 64) - 32)]
    assert "cut short" in refused(written(tmp_path, file.build()))


@pytest.mark.parametrize("shape", [(0, 1 << 62, 1 << 62), (1 << 30, 1 << 30), (1 << 63,)])
@pytest.mark.parametrize("kind", [0, 77])
def test_dimensions_that_overflow_a_loader_are_refused_for_every_type(
    tmp_path: Path, shape: tuple[int, ...], kind: int
) -> None:
    file = sample()
    file.tensors = [("odd", shape, kind, 0)]
    assert "absurd" in refused(written(tmp_path, file.build()))


def test_a_header_costs_little_memory_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "KEPT_BYTES_MAX", 10_000)
    file = GgufFile()
    file.keys = [(f"key{number}", STRING, struct.pack("<Q", 5000) + b"x" * 5000) for number in range(3)]
    assert "larger than" in refused(written(tmp_path, file.build()))
    monkeypatch.setattr(gguf, "ARRAY_STRINGS_MAX", 5)
    strings = struct.pack("<IQ", STRING, 3) + 3 * struct.pack("<Q", 0)
    file.keys = [("one", ARRAY, strings), ("two", ARRAY, strings)]
    assert "announces 3 strings" in refused(written(tmp_path, file.build()))


@pytest.mark.parametrize("alignment", [0, 24, 1 << 21])
def test_alignment_must_be_a_sane_power_of_two(tmp_path: Path, alignment: int) -> None:
    file = sample().u32("general.alignment", alignment)
    assert "alignment" in refused(written(tmp_path, file.build()))


def test_announced_lengths_do_not_cost_memory(tmp_path: Path) -> None:
    file = GgufFile()
    file.keys = [("tokens", ARRAY, struct.pack("<IQ", STRING, 1 << 60))]
    assert "announces" in refused(written(tmp_path, file.build()))
    file.keys = [("numbers", ARRAY, struct.pack("<IQ", 4, 1 << 61))]
    assert "cut short" in refused(written(tmp_path, file.build()))
    file.keys = [("text", STRING, struct.pack("<Q", 1 << 40))]
    assert "announces" in refused(written(tmp_path, file.build()))
    data = b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1 << 40)
    assert "announces" in refused(written(tmp_path, data))


def test_nested_arrays_and_unknown_types_are_refused(tmp_path: Path) -> None:
    file = GgufFile()
    file.keys = [("deep", ARRAY, struct.pack("<IQ", ARRAY, 1))]
    assert "unknown type 9" in refused(written(tmp_path, file.build()))
    file.keys = [("odd", 99, b"")]
    assert "unknown type 99" in refused(written(tmp_path, file.build()))


def test_model_without_tensors_is_refused(tmp_path: Path) -> None:
    file = sample()
    file.tensors = []
    assert "holds no tensors" in refused(written(tmp_path, file.build()))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    blob = bytearray(sample().build())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=8))
        blob[at : at + len(patch)] = patch
    if data.draw(st.booleans()):
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    path = written(tmp_path, bytes(blob))
    try:
        header = gguf.read_header(path)
    except KithError as error:
        assert error.code == "bad-model"  # noqa: PT017 - both outcomes are right
    else:
        assert header.tensor_bytes <= len(blob)


def test_memory_check_names_both_figures(tmp_path: Path) -> None:
    header = gguf.read_header(written(tmp_path, sample().build()))
    gguf.check_memory(header, 0, 1, available_bytes=10**9)
    with pytest.raises(KithError) as caught:
        gguf.check_memory(header, 0, 1, available_bytes=10**8)
    assert caught.value.code == "bad-model"
    assert "134 MB" in caught.value.message
    assert "100 MB are available" in caught.value.message


def test_memory_check_counts_the_cache_of_every_slot(tmp_path: Path) -> None:
    header = gguf.read_header(written(tmp_path, sample().build()))
    cache = header.kv_bytes_per_token * 512
    enough = header.tensor_bytes + gguf.OVERHEAD_BYTES + 4 * cache
    gguf.check_memory(header, 0, 4, available_bytes=enough)
    with pytest.raises(KithError):
        gguf.check_memory(header, 0, 5, available_bytes=enough)


def test_a_pinned_file_is_the_only_one_that_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, sample().build())
    right = hashlib.sha256(sample().build()).hexdigest()
    gguf.check_sha256(path, right.upper())
    with pytest.raises(KithError, match=right):
        gguf.check_sha256(path, "0" * 64)


def test_the_limit_for_a_wild_process_leaves_room_for_a_tame_one(tmp_path: Path) -> None:
    header = gguf.read_header(written(tmp_path, sample().build()))
    limit = gguf.memory_limit_bytes(header, 0, 4, cores=2)
    assert limit > 2 * (header.tensor_bytes + 4 * 512 * header.kv_bytes_per_token) + gguf.OVERHEAD_BYTES
    assert limit < gguf.memory_limit_bytes(header, 0, 4, cores=64)
    assert gguf.memory_limit_bytes(dataclasses.replace(header, kv_bytes_per_token=0), 0, 4, cores=2) == 0


def test_of_a_mixture_of_experts_a_token_uses_a_part(tmp_path: Path) -> None:
    file = GgufFile(data=b"\0" * 4 * 160)
    file.text("general.architecture", "moe").u32("moe.expert_count", 8).u32("moe.expert_used_count", 2)
    file.tensors = [("token_embd.weight", (32,), 0, 0), ("blk.0.ffn_down_exps.weight", (4, 4, 8), 0, 128)]
    assert gguf.read_header(written(tmp_path, file.build())).active_share == pytest.approx((32 + 128 / 4) / 160)
    assert gguf.read_header(written(tmp_path, sample().build())).active_share == 1
    for used, count in ((0, 8), (9, 8), (2, 0)):
        file.keys = file.keys[:1]
        file.u32("moe.expert_count", count).u32("moe.expert_used_count", used)
        assert gguf.read_header(written(tmp_path, file.build())).active_share == 1


def test_a_model_in_several_files_is_all_of_them(tmp_path: Path) -> None:
    paths = write_parts(sample(), tmp_path, 2)
    whole, split = gguf.read_header(written(tmp_path, sample().build())), gguf.read_header(paths[0])
    assert split.file_bytes == sum(path.stat().st_size for path in paths)
    assert split.paths == tuple(paths)
    assert dataclasses.replace(split, file_bytes=whole.file_bytes, paths=whole.paths) == whole


def test_a_first_file_without_tensors_is_read(tmp_path: Path) -> None:
    file = sample()
    paths = write_parts(file, tmp_path, 1, "own")
    keys = file.keys
    first = GgufFile(keys=[*keys, ("split.no", U16, b"\0\0"), ("split.count", U16, b"\2\0")])
    (tmp_path / "own-00001-of-00002.gguf").write_bytes(first.build())
    second = GgufFile(keys=[("split.no", U16, b"\1\0"), ("split.count", U16, b"\2\0")], tensors=file.tensors)
    second.data = file.data
    (tmp_path / "own-00002-of-00002.gguf").write_bytes(second.build())
    header = gguf.read_header(tmp_path / "own-00001-of-00002.gguf")
    assert (header.tensors, header.parameters) == (2, gguf.read_header(paths[0]).parameters)


def test_every_file_of_a_model_is_checked_before_it_is_loaded(tmp_path: Path) -> None:
    first, second = write_parts(sample(), tmp_path, 2)
    good = second.read_bytes()
    assert "is part 2 of 2" in refused(second)
    second.write_bytes(good[:-32])
    assert f"{second} is cut short" in refused(first)
    second.write_bytes(good.replace(b"GGUF", b"GGML", 1))
    assert f"{second} is not a GGUF file" in refused(first)
    second.write_bytes(first.read_bytes())
    assert f"{second} is part 1 of 2" in refused(first)
    second.unlink()
    assert f"{second} does not exist" in refused(first)
    assert "is one of 2 files" in refused(first.rename(tmp_path / "other.gguf"))


def test_a_model_of_too_many_files_is_refused(tmp_path: Path) -> None:
    file = sample()
    file.keys += [("split.no", U16, b"\0\0"), ("split.count", U16, b"\xff\xff")]
    path = tmp_path / "model-00001-of-65535.gguf"
    path.write_bytes(file.build())
    assert "65535 files" in refused(path)


@pytest.mark.model
def test_real_model_is_read(model_path: Path) -> None:
    header = gguf.read_header(model_path)
    assert (header.architecture, header.quantization) == ("llama", "Q4_1")
    assert header.parameters == 134_515_008
    assert header.context_tokens == 8192
    assert "<|im_start|>" in header.chat_template
