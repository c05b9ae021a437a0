"""Models that are worth knowing: a small, dated list of facts in catalogue.toml, read and checked.

Idea: a list that somebody checked beats a search that nobody did. Each row says where its facts come from; a price says
of which day it is. The list gets old, so nothing here decides anything: advise.py does, and says what it looked at.

Does not: hold models that could not be checked, or grow by itself.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("catalogue.toml")
TASKS = ("chat", "summarise", "code", "extract", "embed", "classify")
TIER_MAX = 5


@dataclass(frozen=True)
class LocalModel:
    """`active`: parameters that one token uses. `tasks`: what it suits → tier, 1 to 5."""

    name: str
    source: str  # hf://…; empty: the default model
    quantization: str
    bytes: int  # of the file, rounded as its page rounds
    parameters: int
    kv_bytes_per_token: int
    context: int
    licence: str
    languages: str
    tasks: dict[str, int]
    evidence: str
    active: int = 0
    sha256: str = ""
    note: str = ""

    @property
    def active_share(self) -> float:
        return (self.active or self.parameters) / self.parameters


@dataclass(frozen=True)
class HostedModel:
    """Prices in US dollars for a million tokens."""

    name: str
    vendor: str
    url: str
    input: float
    output: float
    context: int
    languages: str
    tasks: tuple[str, ...]
    price_date: str
    price_source: str

    def price(self, prompt_tokens: int, output_tokens: int) -> float:
        """US dollars."""
        return (self.input * prompt_tokens + self.output * output_tokens) / 1e6


@dataclass(frozen=True)
class Catalogue:
    read: str  # the day on which its facts were checked
    local: tuple[LocalModel, ...]
    hosted: tuple[HostedModel, ...]


def load() -> Catalogue:
    with FILE.open("rb") as file:
        data = tomllib.load(file)
    local = tuple(LocalModel(**row) for row in data["local"])
    hosted = tuple(HostedModel(**{**row, "tasks": tuple(row["tasks"])}) for row in data["hosted"])
    return Catalogue(data["read"], local, hosted)
