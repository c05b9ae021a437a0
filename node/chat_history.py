"""The dialogue that a chat sends: the newest turns that fit the model's context.

Idea: the system message stays, the oldest exchanges go first, always a question together with its answer, so that what
is left still reads as a dialogue. Tokens are estimated from the text (counting them exactly would cost a round trip a
turn): three bytes of UTF-8 a token, which overstates for English and for CJK text comes near; the node refuses what
does not fit all the same.

Not guaranteed: a single message longer than the context is kept, and the node says that it is too long.
"""

from dataclasses import dataclass, field

from mesh.wire import engine_pb2

BYTES_PER_TOKEN = 3
#: What a chat template adds to each message: role and markers, tokens.
TOKENS_PER_MESSAGE = 8
#: Kept messages at most, whatever fits: a bound for callers that never clear.
MESSAGES_MAX = 2000


def estimate_tokens(text: str) -> int:
    return len(text.encode()) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE


@dataclass
class ChatHistory:
    """Invariant: `turns` alternates user, assistant, and starts with user.

    Args:
        context_tokens: of one slot of the model; 0 where it is not known (nothing is dropped for its size then).
        answer_tokens: room kept for the answer.
    """

    system: str = ""
    context_tokens: int = 0
    answer_tokens: int = 256
    turns: list[engine_pb2.ChatMessage] = field(default_factory=list)

    def ask(self, text: str) -> int:
        """Add a question; the number of old messages that were dropped to make room."""
        assert len(self.turns) % 2 == 0, "a question follows an answer"
        self.turns.append(engine_pb2.ChatMessage(role="user", content=text))
        dropped = 0
        while len(self.turns) > 2 and not self._fits():
            del self.turns[:2]
            dropped += 2
        return dropped

    def answer(self, text: str) -> None:
        assert len(self.turns) % 2 == 1, "an answer follows a question"
        self.turns.append(engine_pb2.ChatMessage(role="assistant", content=text))

    def take_back(self) -> None:
        """Drop the last question: it got no answer."""
        assert len(self.turns) % 2 == 1
        self.turns.pop()

    def clear(self) -> None:
        self.turns.clear()

    def messages(self) -> list[engine_pb2.ChatMessage]:
        first = [engine_pb2.ChatMessage(role="system", content=self.system)] if self.system else []
        return first + self.turns

    def _fits(self) -> bool:
        if len(self.turns) > MESSAGES_MAX:
            return False
        needed = sum(estimate_tokens(message.content) for message in self.messages()) + self.answer_tokens
        return not self.context_tokens or needed <= self.context_tokens
