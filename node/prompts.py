"""What agents are told. All prompts of jobs stand here, so that they can be read and compared in one place.

The document and a question's context are data: they are fenced, and the instruction comes after them, because small
models follow what they read last. A fence is longer than any run of its character in the text, so a text can not close
it. Not guaranteed: that a model never follows an instruction inside the fence; that is why everything it writes about
a document is checked against the document (solver/alignment.py).
The wordings were chosen by reading the outputs of a 135M model: asked to summarise, it invents a text about the text;
asked to make it shorter, it stays with the text's own sentences, and more of its sentences pass the check. Told the
section's heading, it writes about the heading.
"""

import re
from collections.abc import Sequence

from mesh.wire import engine_pb2
from solver.text import is_cjk, words


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


def summarize_piece(text: str, sentences: int) -> list[engine_pb2.ChatMessage]:
    return _shorten(fence(text), sentences)


def combine_summaries(sentences_in: Sequence[str], sentences: int) -> list[engine_pb2.ChatMessage]:
    return _shorten(fence(" ".join(sentences_in)), sentences)


#: Questions with short answers, shown before the real one: a small model learns the form from what it sees.
_EXAMPLES = (
    ("What is the largest ocean?", "the Pacific Ocean"),
    ("How many days are in a week?", "seven"),
    ("What colour is snow?", "white"),
    ("Which animal barks?", "a dog"),
    ("What do people borrow from a library?", "books"),
)
_EXAMPLES_CJK = (
    ("世界上最大的海洋是什么？", "太平洋"),
    ("一个星期有几天？", "七天"),
    ("雪是什么颜色？", "白色"),
    ("什么动物会汪汪叫？", "狗"),
    ("人们从图书馆借什么？", "书"),
)
_EXAMPLES_SHOWN = 3


def answer(question: str, context: str, seed: int = 0) -> list[engine_pb2.ChatMessage]:
    """A question after examples; `seed` chooses which, so that members of a panel do not read the same words."""
    examples = _EXAMPLES_CJK if any(is_cjk(word) for word in words(question)) else _EXAMPLES
    shown = [examples[(seed + at) % len(examples)] for at in range(_EXAMPLES_SHOWN)]
    messages = [engine_pb2.ChatMessage(role="system", content="You answer every question with one short phrase.")]
    for asked, answered in shown:
        messages.append(engine_pb2.ChatMessage(role="user", content=asked))
        messages.append(engine_pb2.ChatMessage(role="assistant", content=answered))
    about = f"{fence(context)}\n\n" if context else ""
    messages.append(engine_pb2.ChatMessage(role="user", content=about + question))
    return messages


def choose(question: str, options: Sequence[str], context: str, seed: int = 0) -> list[engine_pb2.ChatMessage]:
    """A question with its options listed."""
    listed = "\n".join(f"- {option}" for option in options)
    return answer(f"{question}\nChoose one of these answers:\n{listed}", context, seed)
