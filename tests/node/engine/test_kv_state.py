"""Packed KV: what comes back is what went in, and whatever was changed on the way is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine import kv_state
from node.errors import KithError

NAME = "0123456789abcdef" * 4
LAYERS, ROW, WIDTH = 2, 6, 3


def native(positions: list[int], transposed: bool, stream: int = 0, streams: int = 1) -> bytes:
    """A state as llama.cpp writes it; the data of a cell tells its layer and position."""
    cells = len(positions)
    out = struct.pack("<IiI", 77, 5, streams)
    for number in range(streams):
        out += struct.pack("<I", cells if number == stream else 0)
        if number != stream:
            continue
        for position in positions:
            out += struct.pack("<iIi", position, 1, 5)
        out += struct.pack("<II", transposed, LAYERS)
        for layer in range(LAYERS):
            out += struct.pack("<iQ", 1, ROW) + b"".join(bytes([(100 * layer + p) % 256] * ROW) for p in positions)
        for layer in range(LAYERS):
            if transposed:
                rows = b"".join(bytes([(50 + 100 * layer + p) % 256] * 2) for _ in range(WIDTH) for p in positions)
                out += struct.pack("<iII", 1, 2, WIDTH) + rows
            else:
                out += struct.pack("<iQ", 1, ROW) + b"".join(
                    bytes([(50 + 100 * layer + p) % 256] * ROW) for p in positions
                )
    return out


@given(st.permutations(range(6)), st.booleans(), st.integers(1, 6), st.integers(0, 2), st.integers(1, 3))
def test_beginning_comes_back_in_order(
    positions: list[int], transposed: bool, count: int, stream: int, streams: int
) -> None:
    state = native(positions, transposed, stream, 3)
    layout = kv_state.layout_of(state)
    tokens = list(range(count))
    packed = kv_state.pack(state, layout, NAME, tokens)
    assert layout.bytes_per_token == LAYERS * (ROW + 6)
    assert layout.state_bytes_per_token == (len(state) - len(native([0], transposed, stream, 3))) / 5
    restored = kv_state.unpack(packed, layout, NAME, tokens, streams)
    wanted = native(tokens, transposed, 0, streams)
    assert bytes(restored) == wanted[:4] + struct.pack("<i", 0) + wanted[8:12] + restored[12:16] + _meta(wanted, count)


@given(st.permutations(range(6)), st.booleans(), st.integers(0, 2), st.integers(1, 4))
def test_a_state_goes_into_a_cache_with_another_number_of_streams(
    positions: list[int], transposed: bool, stream: int, streams: int
) -> None:
    state = bytearray(native(positions, transposed, stream, 3))
    assert kv_state.for_streams(state, 3) is state
    other = kv_state.for_streams(state, streams)
    assert streams == 3 or other == native(positions, transposed, 0, streams)
    assert kv_state.layout_of(other) == kv_state.layout_of(state)


@given(st.integers(1, 4), st.integers(1, 4))
def test_an_empty_state_stays_one(streams: int, others: int) -> None:
    empty = struct.pack("<IiI", 77, 5, streams) + bytes(4 * streams)
    assert kv_state.for_streams(bytearray(empty), others) == struct.pack("<IiI", 77, 5, others) + bytes(4 * others)


def _meta(state: bytes, count: int) -> bytes:
    """From the cells on, with the sequence that a state of ours says."""
    cells = np.frombuffer(state[16 : 16 + 12 * count], "<i4").reshape(count, 3).copy()
    cells[:, 2] = 0
    return cells.tobytes() + state[16 + 12 * count :]


@pytest.mark.parametrize("transposed", [True, False])
def test_every_change_is_refused(transposed: bool) -> None:
    state = native(list(range(4)), transposed)
    layout = kv_state.layout_of(state)
    tokens = [7, 8, 9, 10]
    packed = kv_state.pack(state, layout, NAME, tokens)
    for at in range(len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 1
        with pytest.raises(KithError, match="refused"):
            kv_state.unpack(bytes(changed), layout, NAME, tokens, 1)
    for cut in (0, 8, 140, len(packed) - 1):
        with pytest.raises(KithError, match="refused"):
            kv_state.unpack(packed[:cut], layout, NAME, tokens, 1)
    for other in (tokens[:3], [*tokens, 1], [7, 8, 9, 11], []):
        with pytest.raises(KithError, match="other tokens"):
            kv_state.unpack(packed, layout, NAME, other, 1)
    with pytest.raises(KithError, match="another model"):
        kv_state.unpack(packed, layout, "f" * 64, tokens, 1)
    with pytest.raises(KithError, match="refused"):
        kv_state.unpack(packed + b"\0", layout, NAME, tokens, 1)


@given(st.binary(max_size=400))
def test_nonsense_is_no_layout(data: bytes) -> None:
    with pytest.raises(kv_state.NotPlainError):
        kv_state.layout_of(data)


@given(st.integers(0, 200), st.integers(0, 255))
def test_damaged_states_never_break_the_reader(at: int, value: int) -> None:
    state = bytearray(native(list(range(4)), transposed=True))
    if at < len(state):
        state[at] = value
    try:
        kv_state.layout_of(state)
    except kv_state.NotPlainError:
        pass


def test_state_of_a_recurrent_model_is_not_plain() -> None:
    """It goes on after the values, or ends before them."""
    state = native([0, 1], transposed=False)
    for odd in (state + b"\1\0\0\0", state[:-1], native([0, 2], transposed=False)):
        with pytest.raises(kv_state.NotPlainError):
            kv_state.layout_of(odd)


def test_layouts_with_other_numbers_have_other_names() -> None:
    layouts = [kv_state.layout_of(native([0], transposed)) for transposed in (True, False)]
    names = {layout.name(model, version) for layout in layouts for model in ("a", "b") for version in ("1", "2")}
    assert len(names) == 8
    assert {len(name) for name in names} == {64}


def test_fingerprint_tells_files_apart(tmp_path: Path) -> None:
    path, other = tmp_path / "model", tmp_path / "other"
    other.write_bytes(b"c")
    prints = set()
    for data in (b"", b"a", b"a" * 10_000_000, b"b" + b"a" * 9_999_999, b"a" * 10_000_001):
        path.write_bytes(data)
        assert kv_state.model_fingerprint([path]) == kv_state.model_fingerprint([path])
        prints |= {kv_state.model_fingerprint([path]), kv_state.model_fingerprint([other, path])}
    assert len(prints) == 10
