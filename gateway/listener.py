"""The listening sockets: one per data worker on one port, so that the kernel spreads connections.

They are made here and stay open here: connections that queue for a worker that was killed wait for
its successor instead of being reset.
"""

import errno
import socket

__all__ = ["ListenError", "open_listeners", "reserve_port"]


class ListenError(Exception):
    """An address cannot be listened at; the text says what to do."""


def open_listeners(host: str, port: int, count: int, backlog: int) -> list[socket.socket]:
    """`count` sockets that listen at one address; port 0: the first picks, the rest follow.

    Blocks for the look-up of `host`. ListenError names the address and the remedy.
    """
    family, address = _resolve(host, port)
    _refuse_if_taken(family, address)
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            address = sock.getsockname()
        # Only once all are bound: until then the first would take every connection.
        for sock in sockets:
            sock.listen(backlog)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise _say(host, port, error) from error
    return sockets


def reserve_port(host: str, port: int) -> socket.socket:
    """Hold an address for those who will listen there with SO_REUSEPORT; port 0 is any free one.

    The socket is bound and does not listen, so it takes no connections. ListenError.
    """
    family, address = _resolve(host, port)
    _refuse_if_taken(family, address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _say(host, port, error) from error
    return sock


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(f"cannot listen on {host}: no such host ({error})") from error
    family, _, _, _, address = found[0]
    return family, address  # type: ignore[return-value]


def _refuse_if_taken(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    """SO_REUSEPORT would share the port with a stranger of the same user, without a word."""
    if address[1] == 0:
        return
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise _say(address[0], address[1], error) from error


def _say(host: str, port: int, error: OSError) -> ListenError:
    where = f"cannot listen on {host} port {port}"
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"{where}: another process listens there. Stop it, or choose another port "
            "(--port, --admin-port; 0 picks a free one)."
        )
    if error.errno == errno.EACCES:
        return ListenError(f"{where}: ports below 1024 need a privilege; choose a higher one.")
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(f"{where}: this machine has no such address.")
    return ListenError(f"{where}: {error.strerror}")
