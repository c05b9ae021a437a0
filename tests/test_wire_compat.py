"""The contract in proto/ only grows: what an older release sends is still read as it was meant, and vice versa.

The older release is the last one, and its contract is what its wheel holds (tests/lan/releases.py). What each release
keeps of the one before, all keep of the first.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

from tests.lan.releases import PREVIOUS, contract

ROOT = Path(__file__).parents[1]
PROTO = ROOT / "proto"
Files = descriptor_pb2.FileDescriptorSet
Message = descriptor_pb2.DescriptorProto
Field = descriptor_pb2.FieldDescriptorProto


def baseline() -> Files:
    return contract(PREVIOUS)


def current() -> Files:
    """As the generated code has it, which another test compares with proto/."""
    files = Files()
    for path in sorted(PROTO.glob("*.proto")):
        descriptor: FileDescriptor = importlib.import_module(f"mesh.wire.{path.stem}_pb2").DESCRIPTOR
        descriptor.CopyToProto(files.file.add())
    return files


def breaking(old: Files, new: Files) -> list[str]:
    """What a node of the old release could not read, or would read as something else. Names of fields may change."""
    problems: list[str] = []
    new_files = {file.name: file for file in new.file}
    messages = dict(_messages(new))
    enums = dict(_enums(new))
    for file in old.file:
        after = new_files.get(file.name)
        if after is not None and after.package != file.package:
            problems.append(f"{file.name}: package {file.package} became {after.package}")
        for service in file.service:
            problems += _breaking_rpcs(file.package, service, new)
    for name, message in _messages(old):
        if name not in messages:
            problems.append(f"{name} is gone")
        else:
            problems += [f"{name}.{text}" for text in _breaking_fields(message, messages[name])]
    for name, enum in _enums(old):
        values = {value.name: value.number for value in enums[name].value} if name in enums else {}
        for value in enum.value:
            if values.get(value.name) != value.number:
                problems.append(f"{name}.{value.name} is {values.get(value.name, 'gone')}, it was {value.number}")
    return problems


def _breaking_fields(old: Message, new: Message) -> Iterator[str]:
    by_number = {field.number: field for field in new.field}
    reserved = {number for gap in new.reserved_range for number in range(gap.start, gap.end)}
    for field in old.field:
        after = by_number.get(field.number)
        if after is None:
            yield f"{field.name}: field {field.number} is gone{' (reserved)' if field.number in reserved else ''}"
        elif (field.type, field.type_name) != (after.type, after.type_name):
            yield f"{field.name}: field {field.number} has another type"
        elif field.label != after.label:
            yield f"{field.name}: field {field.number} is repeated on one side only"
        elif _oneof(old, field) != _oneof(new, after):
            yield f"{field.name}: field {field.number} moved into or out of a oneof"
        elif field.name != after.name:
            yield f"{field.name}: field {field.number} is now called {after.name}: was its number used again?"


def _breaking_rpcs(package: str, old: descriptor_pb2.ServiceDescriptorProto, new: Files) -> Iterator[str]:
    services = {(file.package, service.name): service for file in new.file for service in file.service}
    after = services.get((package, old.name))
    methods = {method.name: method for method in after.method} if after is not None else {}
    for method in old.method:
        if methods.get(method.name) != method:
            state = "differs" if method.name in methods else "is gone"
            yield f"rpc {old.name}.{method.name} {state}"


def _oneof(message: Message, field: Field) -> str:
    return message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""


def _messages(files: Files) -> Iterator[tuple[str, Message]]:
    def below(prefix: str, message: Message) -> Iterator[tuple[str, Message]]:
        name = f"{prefix}.{message.name}"
        yield name, message
        for inner in message.nested_type:
            yield from below(name, inner)

    for file in files.file:
        for message in file.message_type:
            yield from below(file.package, message)


def _enums(files: Files) -> Iterator[tuple[str, descriptor_pb2.EnumDescriptorProto]]:
    for file in files.file:
        yield from ((f"{file.package}.{enum.name}", enum) for enum in file.enum_type)
    for name, message in _messages(files):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)


def test_the_baseline_is_the_last_release() -> None:
    """By the change log, whose first release is the one that is being made."""
    releases = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert releases[1] == PREVIOUS, f"lay the wheel of {releases[1]} into tests/lan/previous"


def test_proto_breaks_nothing_of_the_last_release() -> None:
    assert {file.name for file in baseline().file} <= {f"mesh/wire/{path.name}" for path in PROTO.glob("*.proto")}
    assert breaking(baseline(), current()) == []


def test_every_field_of_the_last_release_is_guarded() -> None:
    """Whichever is taken out of this contract, or gets another number there: it is seen."""
    guarded = [(name, field) for name, message in _messages(baseline()) for field in message.field]
    assert len(guarded) > 500
    gone = {f"{name}.{field.name}: field {field.number} is gone" for name, field in guarded}
    without, renumbered = current(), current()
    for _, message in _messages(without):
        del message.field[:]
    for _, message in _messages(renumbered):
        for field in message.field:
            field.number += 10_000
    assert gone == set(breaking(baseline(), without)) == set(breaking(baseline(), renumbered))


# Each kind of break, made in a copy of the baseline, must be seen; what only adds must not.


def _message(files: Files, name: str) -> Message:
    return next(message for file in files.file for message in file.message_type if message.name == name)


def _field(files: Files, message: str, field: str) -> Field:
    return next(one for one in _message(files, message).field if one.name == field)


def _remove_field(files: Files) -> None:
    del _message(files, "FactBody").field[2]


def _renumber_field(files: Files) -> None:
    _field(files, "FactBody", "sequence").number = 90


def _retype_field(files: Files) -> None:
    _field(files, "FactBody", "sequence").type = Field.TYPE_STRING


def _another_message(files: Files) -> None:
    _field(files, "JobSubmitted", "request").type_name = ".kith.mesh.v1.Plan"


def _repeat_field(files: Files) -> None:
    _field(files, "BlobRef", "sha256").label = Field.LABEL_REPEATED


def _leave_oneof(files: Files) -> None:
    _field(files, "FactBody", "node_profile").ClearField("oneof_index")


def _use_a_number_again(files: Files) -> None:
    _field(files, "Hello", "name").name = "motto"


def _remove_message(files: Files) -> None:
    file = next(file for file in files.file if file.name.endswith("facts.proto"))
    file.message_type.remove(_message(files, "Deny"))


def _rename_package(files: Files) -> None:
    for file in files.file:
        file.package = "kith.mesh.v2"


def _change_enum_number(files: Files) -> None:
    enum = next(enum for file in files.file for enum in file.enum_type if enum.name == "FactStream")
    enum.value[2].number = 9


def _remove_enum_value(files: Files) -> None:
    enum = next(enum for file in files.file for enum in file.enum_type if enum.name == "MemberState")
    del enum.value[3]


def _remove_rpc(files: Files) -> None:
    service = next(service for file in files.file for service in file.service if service.name == "Mesh")
    del service.method[0]


def _unstream_rpc(files: Files) -> None:
    service = next(service for file in files.file for service in file.service if service.name == "Mesh")
    service.method[0].server_streaming = False


def _remove_service(files: Files) -> None:
    for file in files.file:
        del file.service[:]


BREAKS: list[tuple[Callable[[Files], None], str]] = [
    (_remove_field, "stream: field 3 is gone"),
    (_renumber_field, "sequence: field 4 is gone"),
    (_retype_field, "sequence: field 4 has another type"),
    (_another_message, "request: field 2 has another type"),
    (_repeat_field, "sha256: field 1 is repeated on one side only"),
    (_leave_oneof, "node_profile: field 16 moved into or out of a oneof"),
    (_use_a_number_again, "name: field 6 is now called motto"),
    (_remove_message, "Deny is gone"),
    (_rename_package, "package kith.mesh.v1 became kith.mesh.v2"),
    (_change_enum_number, "is 9, it was 2"),
    (_remove_enum_value, "is gone, it was 3"),
    (_remove_rpc, "rpc Mesh.Link is gone"),
    (_unstream_rpc, "rpc Mesh.Link differs"),
    (_remove_service, "rpc Local."),
]


@pytest.mark.parametrize(("change", "seen_as"), BREAKS)
def test_a_break_is_seen(change: Callable[[Files], None], seen_as: str) -> None:
    changed = baseline()
    change(changed)
    assert seen_as in "\n".join(breaking(baseline(), changed))


def test_what_is_added_breaks_nothing() -> None:
    grown = baseline()
    _message(grown, "FactBody").field.add(name="later", number=99, type=Field.TYPE_BYTES, label=Field.LABEL_OPTIONAL)
    file = next(file for file in grown.file if file.name.endswith("mesh.proto"))
    file.message_type.add(name="Later")
    file.service[0].method.add(name="Later", input_type=".kith.mesh.v1.Later", output_type=".kith.mesh.v1.Later")
    next(enum for file in grown.file for enum in file.enum_type).value.add(name="LATER", number=77)
    assert breaking(baseline(), grown) == []
