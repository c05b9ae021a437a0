"""Tests of node/models/."""
