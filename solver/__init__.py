"""Deciding, as pure functions: costs, allocation, decomposition, alignment of summaries, votes."""
