"""Odd input for fuzzing: bytes that are nearly right, and messages whose fields mean something to who reads them."""

import random
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Rng = random.Random
EDGES = (0, 1, 2, 3, 4, 7, 8, 63, 64, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
DOUBLES = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "a", "default", "answer", "ü", "\0", "x" * 5000, "../../etc/passwd", "127.0.0.1", "fe80::1%eth0", "{}")


def mutated(rng: Rng, data: bytes) -> bytes:
    """`data` with a few faults of the kinds that break decoders."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del out[at:]
            case 3:
                out[at:at] = rng.randbytes(rng.randint(1, 16))
            case 4:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice(EDGES) & ((1 << 8 * size) - 1)
                out[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
            case 5:
                length = rng.randint(1, 64)
                out[at:at] = out[at : at + length] * rng.randint(1, 4)
            case _:
                del out[at : at + rng.randint(1, 32)]
    return bytes(out)


def nearly(rng: Rng, *samples: bytes) -> bytes:
    """A true input with faults, mostly; sometimes noise."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randint(0, 200))
    return mutated(rng, rng.choice(samples))


@dataclass
class Pool:
    """Values that mean something to who reads them."""

    texts: tuple[str, ...] = TEXTS
    ids: tuple[bytes, ...] = (b"", bytes(32), b"x" * 31)

    def fill(self, rng: Rng, message: Message, depth: int = 0) -> Message:
        """Fill the fields of a message at random; also deeper ones, down to five levels."""
        descriptor: Any
        for descriptor in message.DESCRIPTOR.fields:
            if descriptor.containing_oneof is None and rng.random() < 0.75:
                self._set(rng, message, descriptor, depth)
        for oneof in message.DESCRIPTOR.oneofs:
            if rng.random() < 0.9:
                descriptor = rng.choice(list(oneof.fields))
                self._set(rng, message, descriptor, depth)
        return message

    def _set(self, rng: Rng, message: Message, descriptor: FieldDescriptor, depth: int) -> None:
        if descriptor.message_type is not None:
            if depth < 5:
                self._set_messages(rng, message, descriptor, depth)
        elif descriptor.is_repeated:
            getattr(message, descriptor.name).extend(self._value(rng, descriptor) for _ in range(rng.randint(0, 4)))
        else:
            setattr(message, descriptor.name, self._value(rng, descriptor))

    def _set_messages(self, rng: Rng, message: Message, descriptor: FieldDescriptor, depth: int) -> None:
        assert descriptor.message_type is not None
        if descriptor.message_type.GetOptions().map_entry:
            key, value = (descriptor.message_type.fields_by_name[name] for name in ("key", "value"))
            for _ in range(rng.randint(0, 3)):
                getattr(message, descriptor.name)[self._value(rng, key)] = self._value(rng, value)
        elif descriptor.is_repeated:
            for _ in range(rng.randint(0, 3)):
                self.fill(rng, getattr(message, descriptor.name).add(), depth + 1)
        else:
            getattr(message, descriptor.name).SetInParent()
            self.fill(rng, getattr(message, descriptor.name), depth + 1)

    def _value(self, rng: Rng, descriptor: FieldDescriptor) -> Any:
        match descriptor.type:
            case FieldDescriptor.TYPE_STRING:
                return rng.choice(self.texts)
            case FieldDescriptor.TYPE_BYTES:
                return rng.choice(self.ids) if rng.random() < 0.9 else rng.randbytes(rng.randint(0, 64))
            case FieldDescriptor.TYPE_BOOL:
                return rng.random() < 0.5
            case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
                return rng.choice(DOUBLES)
            case FieldDescriptor.TYPE_ENUM:
                return rng.choice((0, 1, 2, 3, 4, 5, 77))
            case FieldDescriptor.TYPE_UINT32 | FieldDescriptor.TYPE_FIXED32:
                return rng.choice(EDGES) & 0xFFFF_FFFF if rng.random() < 0.5 else rng.randint(0, 8)
            case FieldDescriptor.TYPE_INT32:
                return rng.choice((-(2**31), -1, 0, 1, 5, 2**31 - 1))
            case FieldDescriptor.TYPE_INT64:
                return rng.choice((-(2**63), -1, 0, 1, 5, 2**63 - 1))
            case _:
                return rng.choice(EDGES) if rng.random() < 0.5 else rng.randint(0, 8)
