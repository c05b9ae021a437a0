"""What is written into a terminal fact of the request that it ends: all of it, but long texts cut.

Idea: a terminal fact outlives every other fact of its job by a year, and a fact has at most 16 KiB, so each text is cut
to the longest length at which the whole request fits. Works on any request, also on kinds that come later.

Does not: keep fields that this version does not know when the request is too large with them.
"""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from mesh.wire import work_pb2

#: Leaves 12 KiB of a terminal fact to result hashes and reasons.
REQUEST_BYTES_MAX = 4096
#: Longest text kept, in UTF-8 bytes: the first at which the request fits.
_TEXT_BYTES = (4096, 2048, 1024, 512, 256, 128, 64, 32, 16)
#: Texts kept of a list, when cutting alone does not do.
_LIST_ITEMS = 32
CUT_MARK = "…"


def cut_request(request: work_pb2.JobRequest) -> work_pb2.JobRequest:
    """The request in at most `REQUEST_BYTES_MAX` bytes; a request that fits comes back as it is."""
    if request.ByteSize() <= REQUEST_BYTES_MAX:
        return request
    cut = work_pb2.JobRequest()
    for limit in _TEXT_BYTES:
        cut.CopyFrom(request)
        _cut_texts(cut, limit, None)
        if cut.ByteSize() <= REQUEST_BYTES_MAX:
            return cut
    cut.DiscardUnknownFields()
    _cut_texts(cut, _TEXT_BYTES[-1], _LIST_ITEMS)
    assert cut.ByteSize() <= REQUEST_BYTES_MAX, "all that may be long in a request is text"
    return cut


def cut_text(text: str, limit: int) -> str:
    """At most `limit` UTF-8 bytes, whole characters, with a mark where something is missing."""
    raw = text.encode()
    if len(raw) <= limit:
        return text
    return raw[: limit - len(CUT_MARK.encode())].decode(errors="ignore") + CUT_MARK


def _cut_texts(message: Message, limit: int, items: int | None) -> None:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                _cut_texts(inner, limit, items)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                value[:] = [cut_text(text, limit) for text in value[:items]]
            else:
                setattr(message, field.name, cut_text(value, limit))
