"""Model files: the default one, the user's store, where they come from, and which one to choose.

default.py   the default model, fetched once by hash from the package index
store.py     the user's model folder: files, a manifest beside each, who uses them
source.py    what a user may write where a model is meant
hub.py       from Hugging Face; local.py from a file; peers.py from another node; sharing.py to another node
catalogue.py models that are worth knowing; advise.py which of them suits this machine and task
"""

from node.models.default import (
    DEFAULT_NAME,
    default_model_path,
    ensure_default_model,
    has_default_model,
    verify_default_model,
)
from node.models.source import resolve_model

__all__ = [
    "DEFAULT_NAME",
    "default_model_path",
    "ensure_default_model",
    "has_default_model",
    "resolve_model",
    "verify_default_model",
]
