"""A response while it is written: from pieces to OpenAI's typed events, and to the body at the end.

Idea: one machine makes both. Whoever wants the whole body feeds it and drops the events, so a stream and a whole answer
can not differ. An output is a row of items, a message or a call each; one at a time is open.

Source: OpenAI's Responses API, streaming events.
"""

import time
import uuid
from typing import Any

from mesh.wire import common_pb2
from node.errors import KithError
from node.http.answering import Piece, add_usage
from node.http.chat import logprob_of
from node.http.guard import status_of
from node.http.response_items import call_item, message_item, text_part
from node.http.tool_reading import Call

Event = dict[str, Any]


class Writing:
    """Args: `asked`: what of the request stands in the body."""

    def __init__(self, asked: dict[str, Any], model: str) -> None:
        self.id = f"resp_{uuid.uuid4().hex}"
        self._head = {"id": self.id, "object": "response", "created_at": int(time.time()), "model": model} | asked
        self._status = "in_progress"
        self._error: dict[str, Any] | None = None
        self._number = 0
        self._usage = common_pb2.Usage()
        self._reason = ""
        self._extension: dict[str, Any] | None = None
        self.output: list[dict[str, Any]] = []
        self._open = ""  # id of the message that is written
        self._text = ""
        self._logprobs: list[dict[str, Any]] = []

    def body(self) -> dict[str, Any]:
        """The response as it is now."""
        ended = self._status != "in_progress"
        incomplete = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        body = self._head | {
            "status": self._status,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "error": self._error,
            "incomplete_details": incomplete,
            "output": list(self.output),
            "usage": _usage(self._usage) if ended and self._error is None else None,
        }
        return body | ({"kith": self._extension} if self._extension else {})

    def begin(self) -> list[Event]:
        return [
            self._event("response.created", response=self.body()),
            self._event("response.in_progress", response=self.body()),
        ]

    def feed(self, piece: Piece) -> list[Event]:
        events: list[Event] = []
        if piece.text or piece.logprobs:
            events += self._write(piece)
        if piece.call is not None:
            events += self._close("completed") + self._call(piece.call)
        if piece.usage is not None:
            add_usage(self._usage, piece.usage)
        self._reason = piece.reason or self._reason
        self._extension = piece.extension or self._extension
        return events

    def end(self) -> list[Event]:
        status = "incomplete" if self._reason == "length" else "completed"
        events = []
        if not self.output and not self._open:
            events += self._begin_message()
        events += self._close(status)
        self._status = status
        return [*events, self._event(f"response.{status}", response=self.body())]

    def fail(self, error: KithError) -> list[Event]:
        events = self._close("incomplete")
        self._status = "failed"
        code = "rate_limit_exceeded" if status_of(error) == 429 else "server_error"
        self._error = {"code": code, "message": f"{error.message} ({error.code})"}
        return [*events, self._event("response.failed", response=self.body())]

    def _write(self, piece: Piece) -> list[Event]:
        events = [] if self._open else self._begin_message()
        logprobs = [logprob_of(token) for token in piece.logprobs]
        self._text += piece.text
        self._logprobs += logprobs
        return [*events, self._of_part("response.output_text.delta", delta=piece.text, logprobs=logprobs)]

    def _begin_message(self) -> list[Event]:
        item = message_item("", (), "in_progress")
        self._open, self._text, self._logprobs = item["id"], "", []
        return [
            self._event("response.output_item.added", output_index=len(self.output), item=item),
            self._of_part("response.content_part.added", part=text_part("", ())),
        ]

    def _close(self, status: str) -> list[Event]:
        """End the message that is written, if there is one."""
        if not self._open:
            return []
        item = message_item(self._text, self._logprobs, status, self._open)
        events = [
            self._of_part("response.output_text.done", text=self._text, logprobs=self._logprobs),
            self._of_part("response.content_part.done", part=item["content"][0]),
            self._event("response.output_item.done", output_index=len(self.output), item=item),
        ]
        self.output.append(item)
        self._open = ""
        return events

    def _call(self, call: Call) -> list[Event]:
        index = len(self.output)
        begun = call_item(call.name, call.id, "", "in_progress")
        item = call_item(call.name, call.id, call.arguments, "completed", begun["id"])
        about = {"item_id": item["id"], "output_index": index}
        done = "response.function_call_arguments.done"
        self.output.append(item)
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.function_call_arguments.delta", **about, delta=call.arguments),
            self._event(done, **about, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _of_part(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self._open, output_index=len(self.output), content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event


def _usage(usage: common_pb2.Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
