"""What a result depends on, and what it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.task_key import task_key
from mesh.wire import work_pb2

A, B = b"a" * 32, b"b" * 32


def combining() -> work_pb2.Task:
    task = work_pb2.Task(index=3, replica=0, seed=3, depends_on=[0, 1], output_tokens_max=64, prompt_tokens_estimate=5)
    task.combine_summaries.sentences = 4
    return task


def changed(**fields: object) -> work_pb2.Task:
    task = combining()
    for name, value in fields.items():
        setattr(task, name, value)
    return task


def test_numbers_and_estimates_do_not_count() -> None:
    key = task_key(combining(), [A, B])
    assert len(key) == 32
    moved = changed(index=9, prompt_tokens_estimate=77, panel="p")
    moved.depends_on[:] = [4, 5]
    assert task_key(moved, [A, B]) == key


@pytest.mark.parametrize("fields", [{"seed": 4}, {"replica": 1}, {"output_tokens_max": 9}])
def test_what_shapes_a_result_counts(fields: dict[str, object]) -> None:
    assert task_key(changed(**fields), [A, B]) != task_key(combining(), [A, B])


def test_parameters_and_kind_count() -> None:
    other = combining()
    other.combine_summaries.sentences += 1
    assert task_key(other, [A, B]) != task_key(combining(), [A, B])
    other.answer.question = ""
    assert task_key(other, [A, B]) != task_key(combining(), [A, B])


@given(st.lists(st.binary(max_size=40), max_size=4), st.lists(st.binary(max_size=40), max_size=4))
def test_inputs_count_with_their_order_and_their_bounds(one: list[bytes], other: list[bytes]) -> None:
    assert (task_key(combining(), one) == task_key(combining(), other)) == (one == other)


def test_a_kind_that_is_not_known_matches_nothing() -> None:
    assert task_key(work_pb2.Task(seed=3), []) == b""
