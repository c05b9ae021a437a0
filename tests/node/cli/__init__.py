"""Tests of node/cli/."""
