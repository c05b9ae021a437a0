"""Tests of node/chat_history.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import chat_history
from node.chat_history import ChatHistory, estimate_tokens


def roles(history: ChatHistory) -> list[str]:
    return [message.role for message in history.messages()]


def test_dialogue_is_kept_in_order() -> None:
    history = ChatHistory(system="Be brief.")
    history.ask("one")
    history.answer("two")
    history.ask("three")
    assert roles(history) == ["system", "user", "assistant", "user"]
    assert history.messages()[-1].content == "three"


def test_oldest_exchanges_go_first_and_the_system_message_stays() -> None:
    history = ChatHistory(system="s", context_tokens=200, answer_tokens=50)
    dropped = []
    for number in range(6):
        dropped.append(history.ask(f"{number}" + "x" * 89))
        history.answer("y" * 30)
    assert dropped == [0, 0, 2, 2, 2, 2]
    assert roles(history)[0] == "system"
    assert history.turns[0].content.startswith("4")


def test_question_alone_is_kept_however_long() -> None:
    history = ChatHistory(context_tokens=100, answer_tokens=50)
    assert history.ask("x" * 10_000) == 0
    assert roles(history) == ["user"]


def test_question_without_answer_is_taken_back() -> None:
    history = ChatHistory()
    history.ask("one")
    history.take_back()
    assert history.messages() == []
    with pytest.raises(AssertionError):
        history.answer("nobody asked")


def test_without_a_known_context_the_number_of_messages_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_history, "MESSAGES_MAX", 9)
    history = ChatHistory()
    for number in range(20):
        history.ask(str(number))
        history.answer("ok")
    assert len(history.turns) <= 10


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), max_size=30), st.integers(60, 400))
def test_what_is_sent_fits_or_is_one_question(exchanges: list[tuple[str, str]], context: int) -> None:
    history = ChatHistory(system="system", context_tokens=context, answer_tokens=20)
    for question, answer in exchanges:
        history.ask(question)
        sent = history.messages()
        assert sent[-1].content == question
        assert len(history.turns) == 1 or sum(estimate_tokens(one.content) for one in sent) + 20 <= context
        history.answer(answer)
