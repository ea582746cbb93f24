"""A gateway in front of real Tritons, with the port for their own gRPC protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from tests.real import headgate_process
from tests.real.headgate_process import Gateway
from tests.real.process import free_port
from tests.triton.server import Triton


@contextlib.contextmanager
def running(servers: Sequence[Triton], **config: Any) -> Iterator[tuple[Gateway, str]]:
    """The gateway and its gRPC address; more of its configuration as keywords."""
    port = free_port()
    urls = [f"triton={server.url}" for server in servers]
    with headgate_process.running(urls, listen={"grpc_port": port}, **config) as gateway:
        yield gateway, f"127.0.0.1:{port}"
