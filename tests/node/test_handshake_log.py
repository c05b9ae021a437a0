"""Tests of node/handshake_log.py. That gRPC's lines come through is shown by tests/security/test_calls.py."""

import logging
import os

import pytest

from node import logs
from node.handshake_log import REASON_CHARS_MAX, HandshakeLog, words_of

LINE = "I1122 21:28:21.214238     913 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: "
ENDED = LINE + "error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (ENDED, "the certificate has expired"),
        (LINE + "error:100000c0:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE: x", "no certificate"),
        (LINE + "error:1:SSL routines:OPENSSL_internal:NEW_REASON: what\x1b[2J", "NEW_REASON: what [2J"),
        ("I1122 21:28:21.214238     913 tcp_posix.cc:10] something else", ""),
    ],
)
def test_the_cores_words_become_ours(line: str, words: str) -> None:
    found = words_of(line)
    assert found.startswith(words)
    assert bool(found) == bool(words)
    assert len(found) <= REASON_CHARS_MAX


def test_reasons_are_logged_once_and_what_is_not_the_cores_passes(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs.logger, "propagate", True)
    with caplog.at_level(logging.WARNING), HandshakeLog():
        for _ in range(3):
            os.write(2, f"{ENDED}\n".encode())
        os.write(2, b"a library says something\n")
    assert [one.getMessage() for one in caplog.records] == ["a TLS handshake was refused: the certificate has expired"]
    assert capfd.readouterr().err == "a library says something\n"
    os.write(2, b"after it\n")
    assert capfd.readouterr().err == "after it\n"


def test_a_standard_error_that_nobody_reads_stops_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs.logger, "propagate", True)
    before = os.dup(2)
    read, write = os.pipe()
    try:
        os.dup2(write, 2)
        os.close(write)
        os.close(read)
        with caplog.at_level(logging.WARNING), HandshakeLog():
            for _ in range(40):
                os.write(2, b"x" * 4000 + b"\n")
            os.write(2, f"{ENDED}\n".encode())
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert len(caplog.records) == 1
