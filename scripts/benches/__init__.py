"""One bench a file: each has `figures() -> dict[str, float]`, and its docstring says what it measures and how."""
