"""Fixtures that several test modules share."""

import socket

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Any look-up or connection is an error."""

    def refuse(*args, **options):
        raise OSError("a test without network reached out to one")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
