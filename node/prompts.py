"""What agents are told. All prompts of jobs stand here, so that they can be read and compared in one place.

The document and a question's context are data: they are fenced, and the instruction comes after them, because small
models follow what they read last. A fence is longer than any run of its character in the text, so a text can not close
it. Not guaranteed: that a model never follows an instruction inside the fence; that is why everything it writes about
a document is checked against the document (solver/alignment.py).
The wordings were chosen by reading the outputs of a 135M model: asked to summarise, it invents a text about the text;
asked to make it shorter, it stays with the text's own sentences, and more of its sentences pass the check.
"""

import re
from collections.abc import Sequence

from mesh.wire import engine_pb2


def fence(text: str) -> str:
    """`text` between two lines of quotation marks that do not occur in it."""
    longest = max((len(run) for run in re.findall(r'"+', text)), default=0)
    mark = '"' * max(3, longest + 1)
    return f"{mark}\n{text}\n{mark}"


def _chat(system: str, user: str) -> list[engine_pb2.ChatMessage]:
    return [
        engine_pb2.ChatMessage(role="system", content=system),
        engine_pb2.ChatMessage(role="user", content=user),
    ]


def _shorten(text: str, sentences: int) -> list[engine_pb2.ChatMessage]:
    return _chat(
        "You are a concise rewriting assistant. You make text shorter and keep all facts as they are.",
        f"{text}\n\nMake this text much shorter: keep the {sentences} most important sentences and shorten them.",
    )


def summarize_piece(text: str, heading: str, sentences: int) -> list[engine_pb2.ChatMessage]:
    about = f'From the section "{heading}":\n\n' if heading else ""
    return _shorten(about + fence(text), sentences)


def combine_summaries(sentences_in: Sequence[str], sentences: int) -> list[engine_pb2.ChatMessage]:
    return _shorten(fence(" ".join(sentences_in)), sentences)


def answer(question: str, context: str) -> list[engine_pb2.ChatMessage]:
    about = f"{fence(context)}\n\n" if context else ""
    return _chat("You answer with one short phrase and nothing else.", f"{about}{question}")


def choose(question: str, options: Sequence[str], context: str) -> list[engine_pb2.ChatMessage]:
    about = f"{fence(context)}\n\n" if context else ""
    listed = "\n".join(f"- {option}" for option in options)
    return _chat(
        "You choose the right answer from a list and write it down, nothing else.",
        f"{about}Question: {question}\nPossible answers:\n{listed}",
    )
