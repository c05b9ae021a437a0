"""Hypothesis for the machines: no deadline per example, because a busy computer is no bug; fewer examples, quickly."""

from hypothesis import settings

settings.register_profile("mesh", deadline=None, max_examples=60)
settings.load_profile("mesh")
