"""Data stays inside its fence."""

from hypothesis import given
from hypothesis import strategies as st

from node import prompts


@given(st.text(alphabet='"a\n', max_size=60))
def test_a_text_can_not_close_its_fence(text: str) -> None:
    fenced = prompts.fence(text)
    mark = fenced.split("\n", 1)[0]
    assert len(mark) >= 3
    assert set(mark) == {'"'}
    assert fenced == f"{mark}\n{text}\n{mark}"
    assert mark not in text


def test_prompts_hold_what_they_are_about() -> None:
    piece = prompts.summarize_piece("The text.", 3)
    assert [message.role for message in piece] == ["system", "user"]
    assert "3" in piece[1].content
    assert piece[1].content.index("The text.") < piece[1].content.index("important")
    merged = prompts.combine_summaries(["One.", "Two."], 1)
    assert "One. Two." in merged[1].content
    asked = prompts.answer("Why?", "Because.")[-1].content
    assert asked.endswith("Why?")
    assert '"""\nBecause.\n"""' in asked
    assert prompts.answer("Why?", "")[-1].content == "Why?"
    shown = prompts.choose("Why?", ["b", "a"], "")[-1].content
    assert shown.index("- b") < shown.index("- a")


def test_examples_follow_the_seed_and_the_language() -> None:
    def examples(question: str, seed: int) -> list[str]:
        return [message.content for message in prompts.answer(question, "", seed)[1:-1]]

    assert examples("Why?", 1) == examples("Why?", 1) != examples("Why?", 2)
    assert len(set(examples("Why?", 3))) == 6
    assert "太平洋" in examples("为什么？", 0)
    assert [m.role for m in prompts.answer("Why?", "")] == ["system", *["user", "assistant"] * 3, "user"]
