"""Reads an Airflow connection of type ``vllm`` into `EndpointSettings`.

Owns which fields there are, what each may hold in whichever form it was written (form, JSON, URI), and what
the error for a bad value says. Does not know how a connection is fetched, nor whether an endpoint answers.
No message, log line or ``repr`` made here contains the API key, a header's value, or a value that may be one.
"""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks.base_url import base_urls
from airflow_llm_provider.hooks.promise_fields import PROMISE_KEYS, read_promise

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

EXTRA_KEYS: Final = (
    "model",
    "slots",
    "extra_headers",
    "verify",
    "tls",
    "connect_timeout_s",
    "request_timeout_s",
    *PROMISE_KEYS,
)

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?")
_NOT_SHOWN = "a value (not shown: it may be a secret)"


class ConnectionLike(Protocol):
    """The part of an Airflow connection that is read here."""

    conn_id: str
    host: str | None
    port: int | None
    schema: str | None
    login: str | None
    password: str | None
    extra: str | None


def read_connection(connection: ConnectionLike) -> EndpointSettings:
    """Return what the connection says. Unknown extra keys are ignored with one warning that names them.

    Raises:
        ConfigurationError: for a value that cannot be meant; names connection, field, value and the remedy.
    """
    return _Reader(connection.conn_id).read(connection)


def secrets_of(settings: EndpointSettings) -> tuple[str, ...]:
    """Return the values that must not appear anywhere: the API key, and what the extra headers carry.

    ``Bearer abc`` yields ``abc`` too, since the token alone may be logged by others.
    """
    found = [settings.api_key] if settings.api_key else []
    for value in settings.extra_headers.values():
        found += [value, value.split()[-1]]
    return tuple(dict.fromkeys(found))


class _Reader:
    """Reads one connection; holds its id for the errors."""

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id

    def read(self, connection: ConnectionLike) -> EndpointSettings:
        extra = self._extra(connection.extra)
        if _filled(connection.login):
            raise self.bad("login", _NOT_SHOWN, "leave it empty; the API key goes in the password (vllm://:KEY@host)")
        api_key = self._api_key(connection.password)
        given: dict[str, Any] = {
            "slots": self._slots(extra.get("slots")),
            "verify": self._verify(extra.get("verify")),
            "connect_timeout_s": self._seconds("connect_timeout_s", extra.get("connect_timeout_s")),
            "request_timeout_s": self._seconds("request_timeout_s", extra.get("request_timeout_s")),
        }
        promise = read_promise(extra, slots=given["slots"], latency=given.get("latency"), bad=self.bad)
        return EndpointSettings(
            promise=promise,
            given=frozenset(extra) & frozenset(EXTRA_KEYS),
            base_urls=base_urls(
                host=connection.host,
                port=connection.port,
                schema=connection.schema,
                tls=self._flag("tls", extra.get("tls")),
                bad=self.bad,
            ),
            api_key=api_key,
            model=self._model(extra.get("model")),
            extra_headers=self._headers(extra.get("extra_headers"), api_key=api_key),
            **{name: value for name, value in given.items() if value is not None},
        )

    def bad(self, field: str, shown: str, advice: str) -> ConfigurationError:
        return ConfigurationError(f"Connection {self._conn_id!r}: {field} is {shown}; {advice}")

    def _extra(self, text: str | None) -> dict[str, Any]:
        try:
            extra = json.loads(text) if text and text.strip() else None
        except ValueError:
            raise self.bad("extra", "no JSON", 'write an object such as {"model": "my-model"}') from None
        if extra is None:
            return {}
        if not isinstance(extra, dict):
            raise self.bad("extra", _kind(extra), 'write a JSON object such as {"model": "my-model"}')
        if unknown := sorted(set(extra) - set(EXTRA_KEYS)):
            log.warning(
                "Connection %r: extra has unknown keys, which are ignored: %s. Known keys: %s",
                self._conn_id,
                ", ".join(unknown),
                ", ".join(EXTRA_KEYS),
            )
        return {key: value for key, value in extra.items() if _filled(value)}

    def _api_key(self, password: str | None) -> str | None:
        if not password or not password.strip():
            return None
        if not _HEADER_VALUE.fullmatch(password):
            advice = "it has a line break, a space at an end or a non-ASCII character; write the key alone"
            raise self.bad("password (the API key)", _NOT_SHOWN, advice)
        return password

    def _model(self, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.bad("extra.model", _shown(value), "write the served model's name as a string")
        return value.strip()

    def _slots(self, value: Any) -> int | None:
        if value is None:
            return None
        number = _number(value)
        if number is None or number < 1 or number != int(number):
            raise self.bad("extra.slots", _shown(value), "write the server's max_num_seqs, e.g. 256")
        return int(number)

    def _seconds(self, field: str, value: Any) -> float | None:
        if value is None:
            return None
        number = _number(value)
        if number is None or number <= 0:
            raise self.bad(f"extra.{field}", _shown(value), "write seconds above 0, e.g. 30")
        return number

    def _flag(self, field: str, value: Any) -> bool | None:
        word = value.strip().lower() if isinstance(value, str) else value
        if word is None or isinstance(word, bool):
            return word
        if word in ("true", "false"):
            return bool(word == "true")
        raise self.bad(f"extra.{field}", _shown(value), "write true or false")

    def _verify(self, value: Any) -> bool | str | None:
        if isinstance(value, str) and PurePosixPath(value.strip()).is_absolute():
            return value.strip()
        try:
            return self._flag("verify", value)
        except ConfigurationError:
            advice = "write true, false, or the absolute path of a CA bundle, e.g. /etc/ssl/our-ca.pem"
            raise self.bad("extra.verify", _shown(value), advice) from None

    def _headers(self, value: Any, *, api_key: str | None) -> Mapping[str, str]:
        field, example = "extra.extra_headers", 'write an object such as {"X-Tenant": "summaries"}'
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise self.bad(field, "a string that is no JSON (not shown)", example) from None
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.bad(field, _kind(value), example)
        for name, text in value.items():
            self._check_header(field, name, text)
            if api_key and name.lower() == "authorization":
                raise self.bad(f"{field}[{name!r}]", _NOT_SHOWN, "the password is sent as this header; set only one")
        if len({name.lower() for name in value}) < len(value):
            raise self.bad(field, "an object that names a header twice", "header names ignore case; keep one")
        return MappingProxyType(dict(value))

    def _check_header(self, field: str, name: str, text: Any) -> None:
        if not _HEADER_NAME.fullmatch(name):
            raise self.bad(field, f"an object with the name {name!r}", "that is no HTTP header name")
        if not isinstance(text, str):
            raise self.bad(f"{field}[{name!r}]", _kind(text), "write the header's value as a string")
        if not _HEADER_VALUE.fullmatch(text):
            advice = "it is empty, or has a line break, a space at an end or a non-ASCII character"
            raise self.bad(f"{field}[{name!r}]", _NOT_SHOWN, advice)


def _filled(value: Any) -> bool:
    """Tell whether there is a value: forms leave None, blanks or empty objects where nobody wrote anything."""
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    """Return a scalar as JSON and anything else by its kind, so that a misplaced secret is not echoed whole."""
    return json.dumps(value) if isinstance(value, str | int | float) else _kind(value)
