"""JSON schema to GBNF, by the converter that llama-cpp-python brings, mended where it is wrong and bounded.

Only that one module of the package is loaded, in a private copy: it is pure Python (10 ms). What is mended here: it
let control characters into strings, broke literals that hold a quotation mark or backslash, mixed up definitions of
the same name, wrote every repetition out in brackets inside each other, and took "anything" for "an object".

Held by the grammar: types, properties, required, enum, const, anyOf, oneOf, allOf of objects, items, prefixItems,
the bounds of lengths, patterns from ^ to $, dates and times, $ref within the schema. Not held, as by the original:
bounds of numbers, uniqueItems, multipleOf, not, if.
"""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from node.engine.gbnf import REPEAT_MAX, Characters, read
from node.errors import ExitCode, KithError
from node.limits import GRAMMAR_CHARACTERS_MAX

#: Threat: a schema of a few bytes that converts to gigabytes, or recurses until the interpreter gives up.
DEPTH_MAX = 32
NODES_MAX = 4000
VISITS_MAX = 20_000  # of parts, by whatever ways references lead to them
PROPERTIES_MAX = 100  # of one object; optional ones cost their square
ENUM_MAX = 500
PATTERN_CHARACTERS_MAX = 500

_LENGTHS = ("minItems", "maxItems", "minLength", "maxLength")
_CHARACTER = r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'
_SHORTHANDS = {"d": "0-9", "w": "A-Za-z0-9_", "s": " "}
#: The same in a class that excludes them: all that is a space.
_EXCLUDED = {**_SHORTHANDS, "s": r" \xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF"}
_UNSAFE = r"\"\\\x00-\x1F\x7F"  # in a class
_NEVER = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_CLASS = r"\[(?:\\.|[^\]\\])*\]"
#: What differs between regular expressions and the converter's dialect of them.
_UNIT = re.compile(_CLASS + r"|\\.|\(\?:|(?:[*+?]|\{[\d,]*\})\?", re.DOTALL)
_ANCHORS = re.compile(f"({_CLASS})" + r"|\$\|\^", re.DOTALL)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}


def to_gbnf(schema_json: str) -> str:
    """The grammar of all JSON texts that follow a schema; `{}`: of all JSON objects. Raises `KithError`
    (`bad-schema`)."""
    if len(schema_json) > GRAMMAR_CHARACTERS_MAX:
        raise _bad(f"it has {len(schema_json):,} characters, and {GRAMMAR_CHARACTERS_MAX:,} are the limit")
    try:
        schema = json.loads(schema_json)
    except (ValueError, RecursionError) as error:
        raise _bad("it is no JSON text") from error
    if schema is True or schema == {}:
        schema = {"type": "object"}
    if not isinstance(schema, dict):
        raise _bad("it is no JSON object")
    _check(schema)
    converter = _library()(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    try:
        schema = converter.resolve_refs(schema, "")
        converter.visit(schema, "")
        text: str = converter.format_grammar()
    except KithError:
        raise
    # The original checks little of what it is given and says by these that it did not expect it.
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        detail = str(error) if isinstance(error, AssertionError | ValueError) else ""
        raise _bad(detail[:120] or "it holds something that is not known") from error
    return text


def _bad(reason: str) -> KithError:
    return KithError(
        "bad-schema", f"the JSON schema can not be converted: {reason}", "Simplify it.", ExitCode.BAD_INPUT
    )


def _check(schema: Any) -> None:
    """Raises `KithError` for what would grow out of proportion."""
    todo = [(schema, 0)]
    nodes = 0
    while todo:
        node, depth = todo.pop()
        nodes += 1
        if depth > DEPTH_MAX or nodes > NODES_MAX:
            raise _bad(f"it is deeper than {DEPTH_MAX} or larger than {NODES_MAX:,} parts")
        if isinstance(node, list):
            todo += [(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            continue
        todo += [(item, depth + 1) for item in node.values()]
        for key in _LENGTHS:
            value = node.get(key)
            if isinstance(value, bool | float | int) and not (type(value) is int and 0 <= value <= REPEAT_MAX):
                raise _bad(f"{key} is not a whole number within 0 and {REPEAT_MAX}")
        for key, most in (("enum", ENUM_MAX), ("properties", PROPERTIES_MAX)):
            if isinstance(node.get(key), dict | list) and len(node[key]) > most:
                raise _bad(f"more than {most} parts under {key!r}")
        if isinstance(node.get("pattern"), str):
            node["pattern"] = _pattern(node["pattern"])


def _pattern(pattern: str) -> str:
    """A regular expression whose matches are JSON strings as they are, in the converter's dialect."""
    longest = 0
    if len(pattern) <= PATTERN_CHARACTERS_MAX:
        longest = max([0, *map(int, re.findall(r"\d{1,9}", "".join(re.findall(r"\{[^}]*\}", pattern))))])
    if len(pattern) > PATTERN_CHARACTERS_MAX or longest > REPEAT_MAX:
        raise _bad(f"a pattern has more than {PATTERN_CHARACTERS_MAX} characters or {REPEAT_MAX} repetitions")

    def unit(match: re.Match[str]) -> str:
        text = match.group()
        if text.startswith("["):
            return _class(text[1:-1])
        if text == "(?:":
            return "("
        if not text.startswith("\\"):
            return text[:-1]  # what is repeated reluctantly is the same in the end
        if text[1] in _SHORTHANDS:
            return f"[{_SHORTHANDS[text[1]]}]"
        if text[1].lower() in _SHORTHANDS:
            return f"[^{_UNSAFE}{_EXCLUDED[text[1].lower()]}]"
        if text[1].isalnum() or text[1] in '"\\':
            raise _bad(f"the escape {text} of a pattern is not known")
        return f"[\\x{ord(text[1]):02X}]" if text[1].isascii() else text[1]

    if '"' in re.sub(r"\[.*?\]", "", pattern) or any(character < " " for character in pattern):
        raise _bad("a pattern holds quotation marks or control characters")
    converted = _UNIT.sub(unit, pattern)
    if not (converted.startswith("^") and converted.endswith("$")):
        return converted  # which the converter refuses
    whole = _ANCHORS.sub(lambda match: match[1] or "|", converted[1:-1])
    if re.search(r"[$^]", re.sub(_CLASS, "", whole)):
        raise _bad("a pattern has ^ or $ inside")
    # In brackets: the quotation marks around it belong to all alternatives.
    return f"^({whole})$" if "|" in whole else f"^{whole}$"


def _class(body: str) -> str:
    """A class of a pattern as a class of a grammar."""
    known = _EXCLUDED if body.startswith("^") else _SHORTHANDS
    body = re.sub(r"\\([dws])", lambda short: known[short[1]], body)
    body = re.sub(r"\\([^\w\s\]\[\\^/-])", r"\1", body)  # what needs no escape in a grammar may have none
    inverted = "^" if body.startswith("^") else ""
    body = _UNSAFE + body[1:] if inverted else body
    try:
        rules, root = read(f"root ::= [{inverted}{body}]")
    except KithError as error:
        raise _bad(f"the class [{body[:40]}] of a pattern is not known") from error
    (allowed,) = rules[root][0]
    assert isinstance(allowed, Characters)
    if any(allowed.meets(low, high) for low, high in _NEVER):
        raise _bad("a class of a pattern holds quotation marks, backslashes or control characters")
    return f"[{inverted}{body}]"


@cache
def _library() -> Any:
    """The converter's class, mended."""
    package = importlib.util.find_spec("llama_cpp")
    if package is None or not package.submodule_search_locations:
        raise KithError("engine-failed", "llama-cpp-python is not installed", "Run `kith doctor`.")
    path = Path(package.submodule_search_locations[0]) / "llama_grammar.py"
    spec = importlib.util.spec_from_file_location("node.engine._llama_grammar", path)
    assert spec is not None
    assert spec.loader is not None
    library: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    library.PRIMITIVE_RULES["char"] = library.BuiltinRule(_CHARACTER, [])
    library.DOT = r'[^"\\\x7F\x00-\x1F]'
    library._build_repetition = _repetition

    class Converter(library.SchemaConverter):  # type: ignore[misc]
        def _format_literal(self, literal: str) -> str:
            return '"' + "".join(_ESCAPES.get(character, character) for character in literal) + '"'

        def _generate_constant_rule(self, value: Any) -> str:
            return self._format_literal(json.dumps(value, ensure_ascii=False)) + " space"

        def _resolve_ref(self, ref: str) -> str:
            # A rule for each definition, by its number and not by the end of its path.
            names: dict[str, str] = self.__dict__.setdefault("_names", {})
            if ref not in names:
                names[ref] = f"ref-{len(names)}"
                body = self.visit(self._refs[ref], f"{names[ref]}-is")
                self._rules[names[ref]] = body
            return names[ref]

        visits = 0

        def visit(self, schema: Any, name: str) -> str:
            self.visits += 1
            if self.visits > VISITS_MAX:
                raise _bad("its references make it too large")
            if schema is True or schema == {}:
                return str(self._add_primitive("value", library.PRIMITIVE_RULES["value"]))
            if not isinstance(schema, dict):
                raise _bad("a part of it is no schema")
            # Words that say nothing of the form; a schema of only these is "anything".
            bare = {key: value for key, value in schema.items() if key not in _WORDS}
            if bare.get("items") == {}:
                bare["items"] = True
            if not bare and name:
                return self.visit({}, name)
            return str(super().visit(bare or {"type": "object"}, name))

    return Converter


_WORDS = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema")


def _repetition(
    item_rule: str,
    min_items: int,
    max_items: int | None,
    separator_rule: str | None = None,
    item_rule_is_literal: bool = False,
) -> str:
    del item_rule_is_literal
    if max_items is not None and max_items < min_items:
        raise _bad("an upper bound is below its lower one")
    if max_items == 0:
        return ""
    if separator_rule is None:
        return f"{item_rule}{{{min_items},{'' if max_items is None else max_items}}}"
    more = "" if max_items is None else max_items - 1
    rest = f"{item_rule} ( {separator_rule} {item_rule} ){{{max(0, min_items - 1)},{more}}}"
    return rest if min_items else f"( {rest} )?"
