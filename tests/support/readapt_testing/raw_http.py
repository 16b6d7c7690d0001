"""Bytes as they are to a server on loopback, where no HTTP client would send them."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from readapt_testing.serving import Running


def connect(server: Running) -> socket.socket:
    """To the serving port; gives up after 20 s of silence."""
    address = urlsplit(server.serving)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received
