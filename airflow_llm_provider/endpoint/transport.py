"""Sockets and TLS, as every HTTP client here wants them, and how much is read of an answer.

Owns the notice of peers that are gone, the trust in certificates, and the end of answers that have none. Does not know
what is sent (`endpoint.client`, `endpoint.latency_prometheus`), nor how long an answer may be.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from aiohttp import ClientError

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import AddrInfoType, ClientResponse

DEAD_PEER_S = 60
"""An answer may take an hour without a byte. So the kernel asks the peer now and then whether it is there: a node that
lost its power is noticed in minutes, and gateways do not forget the connection."""


def watchful_socket(address: AddrInfoType) -> socket.socket:
    """A socket whose kernel notices a peer that is gone without a word, as far as the platform can."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", DEAD_PEER_S),
        ("TCP_KEEPINTVL", DEAD_PEER_S // 4),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", DEAD_PEER_S * 1000),  # ms; for a peer that goes while our request is on its way
    ):
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def ssl_context(verify: bool | str, *, whose: str = "The vLLM connection's") -> ssl.SSLContext | bool:  # noqa: FBT001
    """What aiohttp takes for a connection's word on certificates. Reads the CA bundle from disk.

    Args:
        verify: True checks certificates, False does not, a string is a CA bundle's path.
        whose: for the error.

    Raises:
        ConfigurationError: the CA bundle can't be read.
    """
    if isinstance(verify, bool):
        return verify
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:  # ssl.SSLError too
        raise ConfigurationError(
            f"{whose} CA bundle {verify!r} can't be read ({error}). Set `verify` to a PEM file."
        ) from error


def asyncio_tls(context: ssl.SSLContext | bool) -> ssl.SSLContext | bool:  # noqa: FBT001 - `ssl_context`'s
    """The same for asyncio itself, to which False means no TLS at all, and not certificates of anybody's."""
    if context is not False:
        return context
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    return unverified


class TooLargeError(ClientError):
    """An answer has more bytes than are read of one."""


async def read_body(
    response: ClientResponse, *, most_bytes: int, arrived: Callable[[bytes], None] | None = None
) -> bytes:
    """An answer's whole body.

    Args:
        response: its beginning is here.
        most_bytes: a longer one is not read to its end, if it has one: it would take all memory there is.
        arrived: called with each piece as it arrives.

    Raises:
        TooLargeError: it is longer; the connection is closed.
    """
    pieces, size = [], 0
    try:
        while piece := await response.content.readany():
            size += len(piece)
            if size > most_bytes:
                raise TooLargeError(f"the answer has more than {most_bytes:,} bytes")
            pieces.append(piece)
            if arrived is not None:
                arrived(piece)
    finally:
        if not response.content.is_eof():
            response.close()
    return b"".join(pieces)
