"""The base URLs of an endpoint, from what a connection's host, port, schema and ``tls`` say.

Owns how the forms people write (full URLs with or without ``/v1``, a list, a bare host with a port) become
server roots. Does not know connections, Airflow, or whether anything answers there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from airflow_llm_provider.exceptions import ConfigurationError

_ADVICE = "the server's base URL such as http://gpu1:8000, or several with commas between them"
_HOSTNAME = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+(%\w+)?")


class Complaint(Protocol):
    """Builds the error for a bad value: (field, value as it may be shown, what to write instead)."""

    def __call__(self, field: str, shown: str, advice: str) -> ConfigurationError:
        """Return the error; the caller raises it."""
        ...


def base_urls(
    *, host: str | None, port: int | None, schema: str | None, tls: bool | None, bad: Complaint
) -> tuple[str, ...]:
    """Return server roots without ``/v1`` and trailing slash, in the order written, each once.

    Args:
        host: one base URL, several separated by commas, or bare host names.
        port: for every entry that names no port itself.
        schema: ``http`` or ``https``; or what Airflow's URI parser leaves there, the path of a full URL.
        tls: True means https, False means http, None leaves it to the URL or the schema.
        bad: builds the error to raise; never given a credential.

    Raises:
        ConfigurationError: for a value that leads to no server root, or two that contradict each other.
    """
    if "@" in (host or ""):  # before it is taken apart: a password may hold a comma or a slash
        raise bad("host", "a URL with a user or key in it (not shown)", "put the API key in the password field")
    entries = [entry for part in (host or "").split(",") if (entry := part.strip())]
    if not entries:
        raise bad("host", "empty", f"write {_ADVICE}")
    schema = (schema or "").strip().strip("/")
    return tuple(dict.fromkeys(_root(entry, port=port, schema=schema, tls=tls, bad=bad) for entry in entries))


def _root(entry: str, *, port: int | None, schema: str, tls: bool | None, bad: Complaint) -> str:
    parts = _split(entry, bad=bad)
    hostname = parts.hostname or ""
    try:
        own_port = parts.port
    except ValueError:
        raise bad("host", repr(entry), f"its port is no number from 0 to 65535; write {_ADVICE}") from None
    if port and own_port and port != own_port:
        raise bad("port", str(port), f"the host {entry!r} names another; leave the port empty")
    scheme = _scheme(parts.scheme, schema=schema, tls=tls, bad=bad)
    path = parts.path.rstrip("/")
    if schema not in {"", "http", "https"}:
        if not parts.scheme and schema != "v1":
            raise bad("schema", repr(schema), "leave it empty, or write http or https; a path belongs in the host")
        path = f"{path}/{schema}"
    path = path.removesuffix("/v1")
    if "v1" in path.split("/"):
        raise bad("host", repr(entry), f"routes are added to it; write {_ADVICE}")
    bracketed = f"[{hostname}]" if ":" in hostname else hostname
    number = own_port or port
    return f"{scheme}://{bracketed}{f':{number}' if number else ''}{path}"


def _split(entry: str, *, bad: Complaint) -> SplitResult:
    """Split one entry, refusing what must not be in it; nothing that may be a credential is shown."""
    if "://" not in entry:
        bare_ipv6 = entry.count(":") > 1 and "[" not in entry
        entry = f"//[{entry}]" if bare_ipv6 else f"//{entry}"
    try:
        parts = urlsplit(entry)
        hostname = parts.hostname
    except ValueError:
        raise bad("host", "no URL", f"write {_ADVICE}") from None
    if parts.query or parts.fragment:
        raise bad("host", f"a URL of {hostname} with ? or # in it", "remove that part; headers go in extra_headers")
    if parts.scheme not in {"", "http", "https"}:
        raise bad("host", f"a URL that starts with {parts.scheme}://", f"write {_ADVICE}")
    if not hostname or not _HOSTNAME.fullmatch(hostname) or re.search(r"\s", entry):
        raise bad("host", repr(entry.removeprefix("//")), f"write {_ADVICE}")
    return parts


def _scheme(own: str, *, schema: str, tls: bool | None, bad: Complaint) -> str:
    """Agree on http or https: the URL's own, the schema's and tls's word must not contradict each other."""
    claims = [("host", own), ("schema", schema if schema in {"http", "https"} else "")]
    if tls is not None:
        claims.append(("tls", "https" if tls else "http"))
    said = [(field, scheme) for field, scheme in claims if scheme]
    if len({scheme for _, scheme in said}) > 1:
        text = ", ".join(f"{field} says {scheme}" for field, scheme in said)
        raise bad(said[-1][0], said[-1][1], f"{text}: let only one of them say it")
    return said[0][1] if said else "http"
