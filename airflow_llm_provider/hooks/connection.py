"""Reads an Airflow connection of type ``vllm`` into `EndpointSettings`.

Owns which fields there are, what each may hold in whichever form it was written (form, JSON, URI), and what
the error for a bad value says. Does not know how a connection is fetched, nor whether an endpoint answers.
No message, log line or ``repr`` made here contains the API key, a header's value, or a value that may be one.
"""

from __future__ import annotations

import json
import logging
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from airflow_llm_provider.endpoint.credentials import secrets_in
from airflow_llm_provider.endpoint.settings import EndpointSettings
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks import values
from airflow_llm_provider.hooks.base_url import base_urls
from airflow_llm_provider.hooks.latency_fields import LATENCY_KEYS, read_latency
from airflow_llm_provider.hooks.promise_fields import PROMISE_KEYS, read_promise

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

GUARDS: Final = ("window", "objective", "placement", "hold", "headroom", "priority", "max_in_flight")

EXTRA_KEYS: Final = (
    "model",
    "slots",
    "extra_headers",
    "verify",
    "tls",
    "connect_timeout_s",
    "request_timeout_s",
    *PROMISE_KEYS,
    *LATENCY_KEYS,
)


class ConnectionLike(Protocol):
    """The part of an Airflow connection that is read here."""

    conn_id: str
    host: str | None
    port: int | None
    schema: str | None
    login: str | None
    password: str | None
    extra: str | None


def read_connection(connection: ConnectionLike, prometheus: ConnectionLike | None = None) -> EndpointSettings:
    """Return what the connection says. Unknown extra keys are ignored; a warning, one in each process, names them.

    Args:
        connection: of type ``vllm``.
        prometheus: the connection that its ``prometheus_conn_id`` names (`prometheus_conn_id` finds it).

    Raises:
        ConfigurationError: for a value that cannot be meant; names connection, field, value and the remedy.
    """
    return _Reader(connection.conn_id).read(connection, prometheus)


def prometheus_conn_id(connection: ConnectionLike) -> str | None:
    """Return the id of the second connection that this one needs, or None.

    Raises:
        ConfigurationError: the extra cannot be read.
    """
    name = _Reader(connection.conn_id).fields(connection.extra).get("prometheus_conn_id")
    return str(name).strip() if name is not None else None


def secrets_of(settings: EndpointSettings) -> tuple[str, ...]:
    """Return the values that must not appear anywhere: the API key, and what the headers carry, Prometheus's as well.

    ``Bearer abc`` yields ``abc`` too, since the token alone may be logged by others.
    """
    prometheus = settings.latency.prometheus_headers.values() if settings.latency else ()
    return secrets_in(settings.api_key, (*settings.extra_headers.values(), *prometheus))


class _Reader:
    """Reads one connection; holds its id for the errors."""

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id

    def read(self, connection: ConnectionLike, prometheus: ConnectionLike | None) -> EndpointSettings:
        extra = self.fields(connection.extra)
        warn_of_unknown(self._conn_id, tuple(sorted(set(extra) - set(EXTRA_KEYS))))
        if values.filled(connection.login):
            raise self.bad(
                "login", values.NOT_SHOWN, "leave it empty; the API key goes in the password (vllm://:KEY@host)"
            )
        self._check_spelling(extra)
        api_key = self._api_key(connection.password)
        given: dict[str, Any] = {
            "slots": self._slots(extra.get("slots")),
            "verify": values.verify("extra.verify", extra.get("verify"), self.bad),
            "connect_timeout_s": self._seconds("connect_timeout_s", extra),
            "request_timeout_s": self._seconds("request_timeout_s", extra),
            "latency": read_latency(extra, prometheus, bad=self.bad),
        }
        urls = base_urls(
            host=connection.host,
            port=connection.port,
            schema=connection.schema,
            tls=values.flag("extra.tls", extra.get("tls"), self.bad),
            bad=self.bad,
        )
        return EndpointSettings(
            promise=read_promise(
                extra, servers=len(urls), slots=given["slots"], latency=given["latency"], bad=self.bad
            ),
            given=frozenset(extra) & frozenset(EXTRA_KEYS),
            base_urls=urls,
            api_key=api_key,
            model=self._model(extra.get("model")),
            extra_headers=self._headers(extra.get("extra_headers"), api_key=api_key),
            **{name: value for name, value in given.items() if value is not None},
        )

    def _check_spelling(self, extra: Mapping[str, Any]) -> None:
        """Refuse what is nearly the name of a field that holds batch back: ignored, it would hold nothing."""
        for key in set(extra) - set(EXTRA_KEYS):
            if meant := get_close_matches(key, GUARDS, n=1, cutoff=0.8):
                raise self.bad(f"extra.{key}", "no field", f"write {meant[0]}, if that is meant, or leave it out")

    def bad(self, field: str, shown: str, advice: str) -> ConfigurationError:
        return ConfigurationError(f"Connection {self._conn_id!r}: {field} is {shown}; {advice}")

    def fields(self, text: str | None) -> dict[str, Any]:
        """Return the extra's filled fields."""
        try:
            extra = json.loads(text) if text and text.strip() else None
        except ValueError:
            raise self.bad("extra", "no JSON", 'write an object such as {"model": "my-model"}') from None
        if extra is None:
            return {}
        if not isinstance(extra, dict):
            raise self.bad("extra", values.kind(extra), 'write a JSON object such as {"model": "my-model"}')
        return {key: value for key, value in extra.items() if values.filled(value)}

    def _api_key(self, password: str | None) -> str | None:
        if not password or not password.strip():
            return None
        if not values.HEADER_VALUE.fullmatch(password):
            advice = "it has a line break, a space at an end or a non-ASCII character; write the key alone"
            raise self.bad("password (the API key)", values.NOT_SHOWN, advice)
        return password

    def _model(self, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.bad("extra.model", values.shown(value), "write the served model's name as a string")
        return value.strip()

    def _slots(self, value: Any) -> int | None:
        if value is None:
            return None
        number = values.number(value)
        if number is None or number < 1 or number != int(number):
            raise self.bad("extra.slots", values.shown(value), "write the server's max_num_seqs, e.g. 256")
        return int(number)

    def _seconds(self, name: str, extra: Mapping[str, Any]) -> float | None:
        return values.above_zero(f"extra.{name}", extra.get(name), self.bad)

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
            raise self.bad(field, values.kind(value), example)
        headers = values.headers(field, value, self.bad)
        for name in headers:
            if api_key and name.lower() == "authorization":
                advice = "the password is sent as this header; set only one"
                raise self.bad(f"{field}[{name!r}]", values.NOT_SHOWN, advice)
        return headers


@lru_cache(maxsize=256)
def warn_of_unknown(conn_id: str, keys: tuple[str, ...]) -> None:
    """Warn of keys that mean nothing, if there are any; once, since whoever runs or waits reads every few seconds."""
    if keys:
        log.warning(
            "Connection %r: extra has unknown keys, which are ignored: %s. Known keys: %s",
            conn_id,
            ", ".join(keys),
            ", ".join(EXTRA_KEYS),
        )
