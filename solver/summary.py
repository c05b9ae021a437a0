"""From what a model wrote to the sentences that are kept: cleaning, checking, filling, merging. Pure.

Why: a small model rambles: it opens with "Here is a summary", writes lists, repeats itself, invents. What a person
reads must be said by the document, so the model proposes and this file disposes.
The idea: (1) split the output into sentences and drop what is no statement; (2) align each with the source and drop
what is not said there (solver/alignment.py); (3) fill up with the most central sentences of the source, verbatim; (4)
order by place in the document. Whatever the output was, the result is not empty and every sentence has its spans.
Not guaranteed: a flowing text. Sentences from different places stand side by side.
Source: selection follows Carbonell & Goldstein, "The use of MMR" (1998): central, and unlike what was taken already.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.wire import work_pb2
from solver.alignment import Aligner, content_terms, same_content
from solver.centrality import lead, select_central, selection_weights, topic_of
from solver.text import Outline, is_cjk, normalise, outline, plain, words

#: A verbatim sentence longer than this is cut at a word; its span ends there too.
VERBATIM_CHARS_MAX = 400
#: Output is looked at no further than this. Threat: a back end that never stops.
OUTPUT_CHARS_MAX = 20_000
#: A kept sentence has at least this many words, or twice as many Chinese or Japanese characters.
_WORDS_MIN = 4
#: Factor of the first sentence under a heading.
_SECTION_OPENING = 1.3
_PREFACE = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|here (?:is|are)|here's|below (?:is|are)|the following (?:is|are)|summary|"
    r"the (?:\w+ )?(?:most important|main|key) (?:facts?|points?)|i (?:hope|have|will|can)|let me|note that|please)\b",
    re.I,
)
_COLON_LINE = re.compile(r"[:：][ \t*_]*\n")
_OPENING = re.compile(
    r"^(?:in (?:summary|short|conclusion)|to sum up|overall|summary|总之|总的来说|摘要)\s*[,:：，]\s*", re.I
)
_END_MARKS = ".!?…。！？｡．।॥؟۔"
_CLOSERS = "\"'”’»)]」』）》】*_`"


@dataclass(frozen=True)
class Source:
    """A sentence of the document, as one line, with its span in the document."""

    text: str
    begin: int
    end: int
    place: float = 1.0  # factor for where it stands


def sources_of(piece: Outline, offset: int, document_length: int) -> list[Source]:
    """The sentences of a piece that begins at code point `offset` of its document."""
    found = []
    section = 0
    for sentence in piece.sentences:
        begin, end = sentence.begin, sentence.end
        if text := plain(piece.text[begin:end]):
            place = lead(offset + begin, document_length) * (_SECTION_OPENING if sentence.section != section else 1.0)
            section = sentence.section
            found.append(Source(text, offset + begin, offset + end, place))
    return found


def looping(text: str) -> bool:
    """Whether a model's output so far has begun to repeat itself: then the rest is not worth waiting for."""
    parts = words(text[-2_000:])
    size = 10 if parts and is_cjk(parts[-1]) else 6
    tail = parts[-size:]
    if len(parts) < 2 * size:
        return False
    return any(parts[at : at + size] == tail for at in range(len(parts) - size))


def written_sentences(output: str, complete: bool = True) -> list[str]:
    """The statements in a model's output: no list marks, headings, prefaces, repetitions or half sentences.

    Args:
        complete: the model ended by itself; otherwise a last sentence without an end mark is dropped.
    """
    parsed = outline(_COLON_LINE.sub("\\g<0>\n", output[:OUTPUT_CHARS_MAX]))
    kept: list[str] = []
    spans = parsed.sentences
    for number, span in enumerate(spans):
        sentence = _OPENING.sub("", plain(parsed.of(span)).strip(" \"'“”*_#>-–—•"))
        ended = sentence.rstrip(_CLOSERS)[-1:] in _END_MARKS
        if not ended and number == len(spans) - 1 and not complete:
            continue
        if _PREFACE.match(sentence) or sentence.endswith((":", "：", "?", "？")) or _is_scrap(sentence):
            continue
        if not ended:
            sentence = sentence.rstrip(" ,;；，、-") + ("。" if is_cjk(words(sentence)[-1]) else ".")
        sentence = sentence[0].upper() + sentence[1:]
        if not any(same_content(sentence, other) for other in kept):
            kept.append(sentence)
    return kept


def _is_scrap(sentence: str) -> bool:
    parts = words(sentence)
    if len(parts) < _WORDS_MIN or (is_cjk(parts[0]) and len(parts) < 2 * _WORDS_MIN):
        return True
    terms = Counter(content_terms(sentence))
    return sum(terms.values()) >= 8 and max(terms.values()) > 0.3 * sum(terms.values())


def _is_verbatim(sentence: str, source: str) -> bool:
    return normalise(sentence) == normalise(source)


def summarise(sources: Sequence[Source], document: str, output: str, complete: bool, count: int) -> work_pb2.Summary:
    """At most `count` sentences about `sources`: of the model's output what they support, then central ones of theirs.

    Invariant: at least one sentence when `sources` is not empty; each with spans inside them; in their order.
    """
    texts = [source.text for source in sources]
    aligner = Aligner(texts)
    found: list[tuple[tuple[int, ...], work_pb2.SummarySentence]] = []
    for sentence in written_sentences(output, complete):
        match = aligner.align(sentence)
        if match.problem or len(sentence) > 1.2 * sum(len(texts[i]) for i in match.sources):
            continue
        if len(match.sources) == 1 and _is_verbatim(sentence, texts[match.sources[0]]):
            found.append((match.sources, verbatim_sentence(sources[match.sources[0]])))
            continue
        made = work_pb2.SummarySentence(text=sentence, support=round(match.support, 4))
        for i in match.sources:
            made.sources.add(begin=sources[i].begin, end=sources[i].end)
        found.append((match.sources, made))
    places = [source.place for source in sources]
    weights = selection_weights(texts, places, topic_of(document), output[:OUTPUT_CHARS_MAX])
    if len(found) > count:
        found.sort(key=lambda item: (-max(weights[i] for i in item[0]), item[0]))
        del found[count:]
    if len(found) < count:
        used = {i for group, _ in found for i in group}
        others = [i for i in range(len(texts)) if i not in used]
        chosen = select_central(
            [texts[i] for i in others],
            [weights[i] for i in others],
            count - len(found),
            [made.text for _, made in found],
        )
        found += [((others[i],), verbatim_sentence(sources[others[i]])) for i in chosen]
    if not found:
        found = [((i,), verbatim_sentence(source)) for i, source in enumerate(sources[:count])]
    found.sort(key=lambda item: item[0])
    return work_pb2.Summary(sentences=[made for _, made in found])


def verbatim_sentence(source: Source) -> work_pb2.SummarySentence:
    text, end = source.text, source.end
    if len(text) > VERBATIM_CHARS_MAX:
        cut = text.rfind(" ", VERBATIM_CHARS_MAX // 2, VERBATIM_CHARS_MAX)
        text = text[: cut if cut > 0 else VERBATIM_CHARS_MAX].rstrip() + " …"
    made = work_pb2.SummarySentence(text=text, support=1.0, verbatim=True)
    made.sources.add(begin=source.begin, end=end)
    return made


def combine(
    inputs: Sequence[work_pb2.Summary], document: str, output: str, complete: bool, count: int
) -> work_pb2.Summary:
    """At most `count` sentences out of several summaries, in the order of the document.

    A sentence of the model's output counts when both the inputs and the document at their spans support it; it takes
    the place of the inputs it is made of. Of the rest, central ones are chosen, evenly over the inputs.
    """
    pool = merged_inputs(inputs)
    if not pool:
        return work_pb2.Summary()
    texts = [sentence.text for _, sentence in pool]
    rewritten: dict[int, tuple[tuple[int, ...], work_pb2.SummarySentence]] = {}
    aligner = Aligner(texts)
    for proposal in written_sentences(output, complete):
        match = aligner.align(proposal)
        if match.problem or len(proposal) > 1.2 * sum(len(texts[i]) for i in match.sources):
            continue
        made = _inherit([pool[i][1] for i in match.sources], proposal, document)
        if made is not None:
            for i in match.sources:
                rewritten.setdefault(i, (match.sources, made))
    places = [lead(sentence.sources[0].begin, len(document)) for _, sentence in pool]
    weights = selection_weights(texts, places, topic_of(document), output[:OUTPUT_CHARS_MAX])
    chosen: list[work_pb2.SummarySentence] = []
    done: set[int] = set()
    share: Counter[int] = Counter()
    while len(chosen) < count and len(done) < len(pool):
        index = max(
            (i for i in range(len(pool)) if i not in done),
            key=lambda i: (weights[i] * (1.5 if i in rewritten else 1.0) / (1 + share[pool[i][0]]), -i),
        )
        group, sentence = rewritten.get(index, ((index,), pool[index][1]))
        if done & set(group):
            group, sentence = (index,), pool[index][1]
        done.update(group)
        if any(same_content(sentence.text, other.text) for other in chosen):
            continue
        chosen.append(sentence)
        share[pool[index][0]] += 1
    chosen.sort(key=lambda sentence: (sentence.sources[0].begin, sentence.sources[0].end))
    return work_pb2.Summary(sentences=chosen)


def merged_inputs(inputs: Sequence[work_pb2.Summary]) -> list[tuple[int, work_pb2.SummarySentence]]:
    """The sentences of all inputs, each with its input's number, in document order, without repetitions."""
    every = [(number, sentence) for number, summary in enumerate(inputs) for sentence in summary.sentences]
    every = [item for item in every if item[1].sources]
    every.sort(key=lambda item: (item[1].sources[0].begin, item[1].sources[0].end))
    kept: list[tuple[int, work_pb2.SummarySentence]] = []
    for number, sentence in every:
        if all(normalise(sentence.text) != normalise(other.text) for _, other in kept):
            kept.append((number, sentence))
    return kept


def _inherit(parts: Sequence[work_pb2.SummarySentence], text: str, document: str) -> work_pb2.SummarySentence | None:
    if len(parts) == 1 and normalise(parts[0].text) == normalise(text):
        return parts[0]
    spans = sorted({(span.begin, span.end) for part in parts for span in part.sources})
    originals = [plain(document[begin:end]) for begin, end in spans]
    match = Aligner(originals).align(text, [tuple(range(len(originals)))])
    if match.problem:
        return None
    if len(originals) == 1 and _is_verbatim(text, originals[0]):
        return verbatim_sentence(Source(originals[0], *spans[0]))
    made = work_pb2.SummarySentence(text=text, support=round(match.support, 4))
    for begin, end in spans:
        made.sources.add(begin=begin, end=end)
    return made
