"""Tests of node/joining."""
