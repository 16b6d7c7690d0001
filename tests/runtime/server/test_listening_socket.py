"""What connections inherit from the socket that they come in on."""

from __future__ import annotations

import socket

import pytest

from readapt_runtime.server.listener import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_part_of_an_answer_waits_for_the_client_to_acknowledge_the_part_before(host: str) -> None:
    with listen(host, 0) as door, socket.create_connection(door.getsockname()[:2]):
        connection, _address = door.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
