"""Records of closed jobs: any request fits into a terminal fact, and says as much of itself as fits."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.records import CUT_MARK, REQUEST_BYTES_MAX, cut_request, cut_text
from mesh.wire import common_pb2, work_pb2


def ask(question: str, context: str = "", options: list[str] | None = None) -> work_pb2.JobRequest:
    return work_pb2.JobRequest(
        ask=work_pb2.AskRequest(question=question, context=context, options=options or [], panel=3), seed=7
    )


def test_a_request_that_fits_is_kept_as_it_is() -> None:
    request = ask("why?", "because", ["a", "b"])
    assert cut_request(request) == request


@given(
    st.text(max_size=50), st.integers(1, 400), st.integers(0, 400),
    st.lists(st.text(max_size=30).map(lambda text: text * 9), max_size=300),
)  # fmt: skip
def test_every_request_comes_to_fit(word: str, times: int, more: int, options: list[str]) -> None:
    request = ask(word * times, word * more, options)
    cut = cut_request(request)
    assert cut.ByteSize() <= REQUEST_BYTES_MAX
    assert (cut.ask.panel, cut.seed) == (3, 7)
    assert cut.ask.question.rstrip(CUT_MARK) == request.ask.question[: len(cut.ask.question.rstrip(CUT_MARK))] or (
        cut.ask.question == request.ask.question
    )


def test_the_document_is_named_whatever_is_cut() -> None:
    document = common_pb2.BlobRef(sha256=b"d" * 32, size_bytes=5)
    request = work_pb2.JobRequest(summarize=work_pb2.SummarizeRequest(document=document, title="长" * 9000))
    cut = cut_request(request)
    assert cut.summarize.document == document
    assert cut.summarize.title.endswith("长" + CUT_MARK)


@given(st.text(max_size=200), st.integers(3, 100))
def test_a_cut_text_is_whole_characters_within_the_limit(text: str, limit: int) -> None:
    cut = cut_text(text, limit)
    assert len(cut.encode()) <= max(limit, 3)
    assert cut == text or (cut.endswith(CUT_MARK) and text.startswith(cut[:-1]))
