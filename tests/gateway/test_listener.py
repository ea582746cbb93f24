"""Listening sockets: one port for all workers, and clear words where there is none to have."""

import socket

import pytest

from gateway.listener import ListenError, open_listeners


def close(sockets):
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_all_share_the_port_that_the_first_picked(host):
    sockets = open_listeners(host, 0, 3, 16)
    ports = {sock.getsockname()[1] for sock in sockets}
    assert len(ports) == 1
    assert not any(sock.get_inheritable() for sock in sockets)
    with socket.create_connection((host, ports.pop())):
        close(sockets)


def test_a_taken_port_is_not_shared_with_a_stranger():
    sockets = open_listeners("127.0.0.1", 0, 1, 16)
    port = sockets[0].getsockname()[1]
    with pytest.raises(ListenError) as caught:
        open_listeners("127.0.0.1", port, 2, 16)
    close(sockets)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1 port {port}: another process listens there. Stop it, or "
        "choose another port (--port, --admin-port; 0 picks a free one)."
    )
    close(open_listeners("127.0.0.1", port, 2, 16))


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("203.0.113.1", "cannot listen on 203.0.113.1 port 0: this machine has no such address."),
        ("no..host", "cannot listen on no..host: no such host"),
    ],
)
def test_addresses_that_are_not_ours(host, text):
    with pytest.raises(ListenError) as caught:
        open_listeners(host, 0, 1, 16)
    assert str(caught.value).startswith(text)
