"""Tests of node/http."""
