"""Which engine a node takes where its owner names none: the first one whose library is installed.

llama-cpp-python is built for the CPU it runs on and is the faster one; xllamacpp comes ready-made. Nothing is imported
here: every start of the CLI asks.
"""

from importlib.util import find_spec

#: Engine → the module of its library, best first.
LIBRARIES = {"llama": "llama_cpp", "xllamacpp": "xllamacpp"}


def installed(engine: str) -> bool:
    """Whether the library that the engine needs is there; engines that need none always are."""
    return engine not in LIBRARIES or find_spec(LIBRARIES[engine]) is not None


def default_engine() -> str:
    """Where neither library is there: "llama", whose error says what to install."""
    return next(filter(installed, LIBRARIES), "llama")
