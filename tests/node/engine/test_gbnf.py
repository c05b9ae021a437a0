"""The notation, and what a stranger may write in it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.gbnf import ELEMENTS_MAX, LAST_CODE_POINT, Characters, read
from node.engine.grammar import Budget, Grammar
from node.errors import KithError
from node.limits import GRAMMAR_CHARACTERS_MAX


def accepts(grammar: Grammar, text: str) -> bool:
    state = grammar.start
    for character in text:
        after = grammar.move(state, character, Budget(1_000_000))
        if after is None:
            return False
        state = after
    return state.accepting


@pytest.mark.parametrize(
    ("text", "fits", "does_not"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "y", "yesno"]),
        ("root ::= [a-c]+ [^a-c]", ["abcx", "a\n"], ["x", "ab", "abca"]),
        ('root ::= "a"{2,4}', ["aa", "aaaa"], ["a", "aaaaa"]),
        ('root ::= ("ab"){2}', ["abab"], ["ab", "ababab"]),
        ('root ::= "ab"{2}', ["abab"], ["abb"]),
        ("root ::= [0-9]{2,}", ["12", "12345"], ["1"]),
        ('root ::= "a"? "b"*', ["", "a", "bb", "abb"], ["ba", "aa"]),
        ('root ::= "\\x41\\u00e9\\U0001F600\\n\\t\\"\\\\"', ['Aé😀\n\t"\\'], ["A"]),
        ("root ::= [\\]\\[\\-^]+", ["][-^"], ["a"]),
        ('# a comment\nroot ::= a | # here too\n  b\na ::= "1"\nb ::= ( "2" |\n "3" )\n', ["1", "2", "3"], ["12"]),
        ("root ::= .", ["x", "\n", "语"], ["", "xy"]),
        ('root ::= "(" root ")" | ""', ["", "(())"], ["(", "())"]),
        ("root ::= [a-]", ["a", "-"], ["b"]),
        ('root ::= ("a"*)* "b"', ["b", "aab"], ["a"]),
    ],
)
def test_notation(text: str, fits: list[str], does_not: list[str]) -> None:
    grammar = Grammar(text)
    assert all(accepts(grammar, one) for one in fits)
    assert not any(accepts(grammar, one) for one in does_not)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rule 'root'"),
        ('start ::= "a"', "no rule 'root'"),
        ("root ::= nothing", "'nothing' is not defined"),
        ('root ::= "a', "ends inside"),
        ("root ::= [a", "ends inside"),
        ("root ::= [z-a]", "backwards"),
        ('root ::= ("a"', "'\\)' is missing"),
        ('root ::= "a")', "where its line ends"),
        ("root ::= *", "nothing to repeat"),
        ('root = "a"', "'::=' is missing"),
        ('root ::= "\\q"', "escape"),
        ('root ::= "\\U00110000"', "escape"),
        ('root ::= "\\x4"', "escape"),
        ('root ::= "a"{99999}', "repetition"),
        ('root ::= "a"{2,1}', "repetition"),
        ('root ::= "a"{-1}', "repetition"),
        ('root ::= "a"{', "repetition"),
        ('root ::= "a"\nroot ::= "b"', "twice"),
        ("root ::= " + "(" * 3000 + '"a"' + ")" * 3000, "nested deeper"),
        ('root ::= "a" ' + "| [a-z]{2000}" * 30, "more than 20,000 elements"),
        ("root ::= " + '"a"' * GRAMMAR_CHARACTERS_MAX, "characters"),
        ('root ::= root "x" | "y"', "goes round"),
        ("root ::= " + "e " * 9000 + "\ne ::= " + "|" * 9000, "too many ways"),
        ('root ::= a root "z" | "x"\na ::= b\nb ::= "" | "y"', "goes round"),
        ('root ::= "a"\0', "where its line ends"),
    ],
)
def test_what_can_not_be_used_is_refused_in_words(text: str, reason: str) -> None:
    begun = time.process_time()
    with pytest.raises(KithError, match=reason) as caught:
        Grammar(text)
    assert caught.value.code == "bad-grammar"
    assert len(caught.value.message) < 300
    assert time.process_time() - begun < 2


def test_rules_that_fan_out_do_not_take_exponential_time() -> None:
    """llama.cpp's own reader follows each of the 2**40 ways through these."""
    chain = "\n".join(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(40))
    assert accepts(Grammar(f'root ::= r0\n{chain}\nr40 ::= "a"'), "a")


@given(st.text(alphabet='root::=abx"[]()|*+?{}0123-^\\\n #.,', max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    for whole in (text, f"root ::= {text}"):
        code = "bad-grammar"
        try:
            grammar = Grammar(whole)
            grammar.move(grammar.start, "a", Budget(10_000))
        except KithError as error:
            code = error.code
        assert code == "bad-grammar"


@given(st.lists(st.tuples(st.integers(32, 90), st.integers(0, 9)), min_size=1, max_size=6), st.integers(32, 110))
def test_classes_hold_what_they_say(ranges: list[tuple[int, int]], code_point: int) -> None:
    inside = "".join(f"\\x{low:02X}-\\x{low + size:02X}" for low, size in ranges)
    expected = any(low <= code_point <= low + size for low, size in ranges)
    for mark, wanted in (("", expected), ("^", not expected)):
        rules, root = read(f"root ::= [{mark}{inside}]")
        ((found,),) = rules[root]
        assert isinstance(found, Characters)
        assert found.has(code_point) == wanted
        assert found.meets(code_point, code_point) == wanted
        assert found.meets(0, LAST_CODE_POINT)
        assert all(one[1] + 1 < other[0] for one, other in zip(found.ranges, found.ranges[1:], strict=False))


def test_repetitions_are_counted_written_out() -> None:
    with pytest.raises(KithError, match="elements"):
        read('root ::= "' + "a" * 100 + '"{2000}' + " [b]{2000}" * (ELEMENTS_MAX // 2000))
