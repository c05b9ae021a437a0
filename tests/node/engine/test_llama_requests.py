"""What is kept between requests: grammars, within bounds. What requests ask is tested in test_generate_work.py."""

import pytest

from mesh.wire import engine_pb2
from node.engine import llama, llama_requests
from node.engine.adapters import Adapters
from node.engine.backend import Outbox, Request
from node.engine.embedding import Embedder
from node.engine.llama_requests import LlamaRequests
from node.engine.template import ChatTemplate
from node.gguf import POOLING_MEAN

pytestmark = pytest.mark.model


@pytest.fixture
def requests(model: llama.Model) -> LlamaRequests:
    return LlamaRequests(model, ChatTemplate(""), Adapters(model, ()), Embedder(model, 128, 1, POOLING_MEAN), 128)


def ask(requests: LlamaRequests, grammar: str) -> None:
    command = engine_pb2.EngineCommand(generate=engine_pb2.GenerateRequest(prompt="A word:", grammar=grammar))
    requests.generate(Request(command, Outbox(lambda _: None), lambda _: None)).close()


def test_grammars_are_kept_by_number_and_by_size(requests: LlamaRequests, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(llama_requests.GRAMMARS_MAX + 3):
        ask(requests, f'root ::= "{number}"')
    assert len(requests._grammars) == llama_requests.GRAMMARS_MAX
    kept = dict(requests._grammars)
    ask(requests, 'root ::= "18"')
    assert requests._grammars['groot ::= "18"'] is kept['groot ::= "18"']
    largest = max(one.bytes_kept for one in kept.values())
    monkeypatch.setattr(llama_requests, "GRAMMARS_BYTES_MAX", 4 * largest)
    ask(requests, 'root ::= "99"')
    assert 2 <= len(requests._grammars) <= 5
    assert sum(one.bytes_kept for one in requests._grammars.values()) <= 4 * largest
    ask(requests, 'root ::= "' + "a" * 5000 + '"')
    assert list(requests._grammars) == ['groot ::= "' + "a" * 5000 + '"'], "the newest one is in use"
