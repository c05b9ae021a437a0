"""Models that are worth knowing: a small, dated list of facts in catalogue.toml, read and checked.

Idea: a list that somebody checked beats a search that nobody did. Each row says where its facts can be read and when
they were compared; a price says of which day it is. The list gets old, so nothing here decides anything: advise.py
does, and says what it looked at.

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
    """`active`: parameters that one token uses. `tasks`: what it suits → tier, 1 to 5. More: see the file itself."""

    name: str
    source: str  # hf://…; empty: the default model
    quantization: str
    bytes: int  # of the file
    parameters: int
    layers: int
    kv_heads: int
    head_size: int
    context: int
    licence: str
    languages: str
    tasks: dict[str, int]
    card: str
    evidence: str
    checked: str  # the day
    active: int = 0
    revision: str = ""  # commit of the repository that has this very file
    sha256: str = ""
    thinks: bool = False
    note: str = ""

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values at 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size

    @property
    def page(self) -> str:
        """Where size and hash of the file can be read; empty for the default model."""
        repository, _, file = self.source.removeprefix("hf://").rpartition("/")
        return f"https://huggingface.co/{repository}/blob/{self.revision}/{file}" if repository else ""

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
