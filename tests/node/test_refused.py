"""Tests of node/refused.py."""

from node.refused import LINE_CHARS_MAX, LINES_OF_ONE, PEERS_MAX, WINDOW_S, Refused


class Scene:
    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.refused = Refused(lambda _level, line: self.lines.append(line), lambda: self.now)

    def taken(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


def test_the_first_lines_of_a_minute_are_said_and_the_others_counted() -> None:
    scene = Scene()
    for number in range(LINES_OF_ONE + 312):
        scene.refused.say("a", f"refused {number}")
    assert scene.taken() == [f"refused {number}" for number in range(LINES_OF_ONE)]
    scene.now = WINDOW_S - 0.1
    scene.refused.settle()
    assert not scene.lines
    scene.now = WINDOW_S
    scene.refused.settle()
    assert scene.taken() == ["… and 312 more refused from a in the last minute"]
    scene.refused.say("a", "refused 1")
    assert scene.taken() == ["refused 1"], "another minute"
    scene.now *= 2
    scene.refused.settle()
    assert not scene.lines, "nothing more, no count"


def test_a_line_that_repeats_is_counted() -> None:
    scene = Scene()
    for _ in range(5):
        scene.refused.say("a", "the same")
    scene.now = WINDOW_S
    scene.refused.say("b", "another")  # whoever comes next finds the minute over
    assert scene.taken() == ["the same", "… and 4 more refused from a in the last minute", "another"]


def test_one_peers_flood_takes_no_lines_of_another() -> None:
    scene = Scene()
    for number in range(1000):
        scene.refused.say("a", f"{number}")
    scene.refused.say("b", "of b")
    assert scene.lines[-1] == "of b"
    assert len(scene.lines) == LINES_OF_ONE + 1


def test_what_is_remembered_ends_and_no_count_is_lost() -> None:
    scene = Scene()
    for number in range(PEERS_MAX + 10):
        scene.refused.say(f"peer {number}", "x" * 1000)
        scene.refused.say(f"peer {number}", "x" * 1000)
    assert max(map(len, scene.lines)) == LINE_CHARS_MAX
    assert sum("1 more" in line for line in scene.lines) == 10
    scene.refused.settle(all_of_them=True)
    assert sum("1 more" in line for line in scene.lines) == PEERS_MAX + 10
