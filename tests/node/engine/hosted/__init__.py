"""Tests of the clients of model servers."""
