"""Commands turned into work: rendered, tokenized, checked. What can not be done is refused here, before it waits.

All of it runs on the worker's thread, beside the loop: a long prompt is tokenized, and a grammar read, while others are
being answered.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

from mesh.wire import engine_pb2
from node.engine import json_schema, llama, sampling
from node.engine.adapters import Adapters
from node.engine.backend import Request
from node.engine.embedding import Embedder, EmbedWork, embed_work
from node.engine.generate_work import GenerateWork, Said
from node.engine.grammar import Grammar, Matcher, Vocabulary
from node.engine.sampling import Sampler
from node.engine.score_work import ScoreWork
from node.engine.template import ChatTemplate
from node.engine.text_stream import STOP_CHARACTERS_MAX, STOPS_MAX
from node.errors import ExitCode, KithError
from node.limits import TOP_LOGPROBS_MAX

CONTINUATIONS_MAX = 256

#: Grammars that are kept ready, and bytes of them. Threat: a new one with every request.
GRAMMARS_MAX, GRAMMARS_BYTES_MAX = 16, 128 << 20


class LlamaRequests:
    """Of one loaded model. All methods raise `KithError`."""

    def __init__(
        self, model: llama.Model, template: ChatTemplate, adapters: Adapters, embedder: Embedder, context_tokens: int
    ) -> None:
        self._model = model
        self._template = template
        self._adapters = adapters
        self._embedder = embedder
        self._context_tokens = context_tokens
        self._bos = model.token_text("bos") if model.adds_bos() else ""
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        ends = [token for token in range(self._model.vocabulary_size) if self._model.is_end(token)]
        return Vocabulary(self._model.pieces(), ends)

    def generate(self, request: Request) -> GenerateWork:
        command = request.command.generate
        sampling.check(command.sampling, self._model.vocabulary_size)
        if len(command.stop) > STOPS_MAX or any(not 0 < len(stop) <= STOP_CHARACTERS_MAX for stop in command.stop):
            message = f"at most {STOPS_MAX} stop strings of 1 to {STOP_CHARACTERS_MAX} characters are possible"
            raise KithError("bad-request", message, "Send fewer or shorter stop strings.")
        if command.top_logprobs > TOP_LOGPROBS_MAX:
            message = f"at most {TOP_LOGPROBS_MAX} alternatives a token can be asked for"
            raise KithError("bad-request", message, "Ask for fewer top_logprobs.", ExitCode.BAD_INPUT)
        self._adapters.check(command.adapter)
        prompt = self._prompt(command, command.tools_json)
        tokens = self._model.tokenize(prompt, special=True)
        said, tokens = self._said(command, prompt, tokens)
        self._checked(tokens, 0)
        matcher = self._matcher(command)
        sampler = Sampler(command.sampling, self._model, matcher)
        try:
            sampler.resume(said.tokens)
            work = GenerateWork(request, tokens, self._model, self._context_tokens, sampler, said)
        except BaseException:
            sampler.close()
            raise
        work.adapter = command.adapter
        return work

    def prompt_tokens(self, command: engine_pb2.GenerateRequest) -> list[int]:
        """What the KV cache would hold of the prompt, and of the answer so far."""
        prompt = self._prompt(command, command.tools_json)
        return self._said(command, prompt, self._model.tokenize(prompt, special=True))[1]

    def _said(self, command: engine_pb2.GenerateRequest, prompt: str, tokens: list[int]) -> tuple[Said, list[int]]:
        """The answer so far, and the prompt with it."""
        if command.continue_tokens:
            given = list(command.continue_tokens)
            if max(given) >= self._model.vocabulary_size:
                message = f"continue_tokens holds {max(given)}; the model has {self._model.vocabulary_size:,} tokens"
                raise KithError(
                    "bad-request", message, "Go on with a model of the same vocabulary.", ExitCode.BAD_INPUT
                )
            return Said(given), tokens + given
        if not command.continue_from:
            return Said(), tokens
        joined = self._model.tokenize(prompt + command.continue_from, special=True)
        more = joined[len(tokens) :] if joined[: len(tokens)] == tokens else []
        more = more or self._model.tokenize(command.continue_from, special=False)
        return Said(more, command.continue_from), joined

    def _matcher(self, command: engine_pb2.GenerateRequest) -> Matcher | None:
        if not command.grammar and not command.json_schema:
            return None
        if command.grammar and command.json_schema:
            raise KithError("bad-request", "a request holds a grammar or a schema, not both", "Send one of the two.")
        key = "g" + command.grammar if command.grammar else "s" + command.json_schema
        grammar = self._grammars.get(key)
        if grammar is None:
            text = command.grammar or json_schema.to_gbnf(command.json_schema)
            grammar = self._grammars[key] = Grammar(text)
        self._grammars.move_to_end(key)
        kept = sum(one.bytes_kept for one in self._grammars.values())
        while len(self._grammars) > GRAMMARS_MAX or (kept > GRAMMARS_BYTES_MAX and len(self._grammars) > 1):
            kept -= self._grammars.popitem(last=False)[1].bytes_kept
        return Matcher(grammar, self.vocabulary)

    def score(self, request: Request) -> ScoreWork:
        command = request.command.score
        if not 0 < len(command.continuations) <= CONTINUATIONS_MAX or not all(command.continuations):
            message = f"between 1 and {CONTINUATIONS_MAX} continuations that are not empty can be scored at once"
            raise KithError("bad-request", message, "Send other continuations.")
        prompt = self._prompt(command)
        tokens = self._model.tokenize(prompt, special=True)
        continuations = [self._continuation(prompt, tokens, text) for text in command.continuations]
        self._checked(tokens, max(map(len, continuations)))
        return ScoreWork(request, tokens, continuations)

    def embed(self, request: Request) -> EmbedWork:
        return embed_work(request, self._model, self._embedder)

    def _continuation(self, prompt: str, prompt_tokens: list[int], text: str) -> list[int]:
        """Tokens of `text` as it reads after the prompt; on its own where the two would melt at the seam."""
        joined = self._model.tokenize(prompt + text, special=True)
        if len(joined) > len(prompt_tokens) and joined[: len(prompt_tokens)] == prompt_tokens:
            return joined[len(prompt_tokens) :]
        return self._model.tokenize(text, special=False)

    def _prompt(self, command: engine_pb2.GenerateRequest | engine_pb2.ScoreRequest, tools_json: str = "") -> str:
        if bool(command.messages) == bool(command.prompt):
            message = "a request holds either messages or a prompt"
            raise KithError("bad-request", message, "Send exactly one of the two.")
        if command.prompt and tools_json:
            raise KithError("bad-request", "tools need messages, not a prompt", "Send messages.", ExitCode.BAD_INPUT)
        prompt = self._template.render(command.messages, tools_json) if command.messages else command.prompt
        # The tokenizer adds the begin token; many templates write it as well.
        return prompt.removeprefix(self._bos)

    def _checked(self, tokens: Sequence[int], more: int) -> None:
        """Raises `KithError` (`prompt-too-long`) unless one more token than `more` has room after `tokens`."""
        if len(tokens) + more >= self._context_tokens:
            message = f"the prompt has {len(tokens) + more:,} tokens; the context holds {self._context_tokens:,}"
            raise KithError("prompt-too-long", message, "Send less text, or start the node with a larger --ctx.")
        if not tokens:
            raise KithError("bad-request", "the prompt is empty", "Send some text.")
