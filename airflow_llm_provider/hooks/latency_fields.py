"""The connection's fields that say what latency real-time was promised, and where it is read.

Owns these fields and what the error for a bad value says; also the reading of a second connection, of type ``http``, to
Prometheus. Does not know how latency is read (`endpoint.latency`), nor the promise's other fields
(`hooks.promise_fields`).
"""

from __future__ import annotations

import base64
import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from airflow_llm_provider.core.objective import Metric, parse_objectives
from airflow_llm_provider.endpoint.settings import LatencySettings, Source
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks import values
from airflow_llm_provider.hooks.base_url import base_urls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.core.objective import Objective
    from airflow_llm_provider.hooks.base_url import Complaint
    from airflow_llm_provider.hooks.connection import ConnectionLike

LATENCY_KEYS: Final = (
    "objective",
    "latency_source",
    "sampling_period_s",
    "healthy_for_s",
    "prometheus_url",
    "prometheus_conn_id",
    "prometheus_query",
    "only_batch_client",
    "canary_priority",
    "on_unknown",
    "unknown_limit",
    "unknown_alert_s",
)

_NO_HEADERS = frozenset(  # what Airflow's HTTP hook takes an http connection's extra for, when it is no header
    {"allow_redirects", "cert", "check_response", "max_redirects", "proxies", "proxy", "stream", "timeout", "trust_env"}
)
_QUERY = 'write PromQL, or an object such as {"ttft": "histogram_quantile({quantile}, …)"}'


def read_latency(
    extra: Mapping[str, Any], prometheus: ConnectionLike | None, *, bad: Complaint
) -> LatencySettings | None:
    """Return what `extra` says about latency; None where it promises nothing.

    Args:
        extra: the connection's filled extra fields.
        prometheus: the connection that ``prometheus_conn_id`` names, where it names one.
        bad: builds the error to raise.

    Raises:
        ConfigurationError: for a value that cannot be meant, or one that lacks another.
    """
    objective, source = extra.get("objective"), extra.get("latency_source")
    sources = ", ".join(Source)
    if objective is None and source is None:
        return None
    if objective is None:
        raise bad("extra.latency_source", values.shown(source), "and no objective is: set both, or neither")
    if source is None:
        advice = f"and nothing says where latency is read: set latency_source to one of {sources}"
        raise bad("extra.objective", values.shown(objective), advice)
    word = str(source).strip().lower()
    if word not in list(Source):
        raise bad("extra.latency_source", values.shown(source), f"write one of {sources}")
    objectives = _objectives(objective, bad)
    given = {
        "sampling_period_s": values.above_zero("extra.sampling_period_s", extra.get("sampling_period_s"), bad),
        "healthy_for_s": values.above_zero("extra.healthy_for_s", extra.get("healthy_for_s"), bad),
        "unknown_alert_s": values.above_zero("extra.unknown_alert_s", extra.get("unknown_alert_s"), bad),
        "only_batch_client": values.flag("extra.only_batch_client", extra.get("only_batch_client"), bad),
        "canary_priority": _whole("canary_priority", extra.get("canary_priority"), bad, "write a whole number, e.g. 0"),
        "unknown_limit": _whole("unknown_limit", extra.get("unknown_limit"), bad, "write a whole number of 1 or more"),
        "on_unknown": _on_unknown(extra.get("on_unknown"), bad),
        "prometheus_query": _query(extra.get("prometheus_query"), objectives, bad),
        **_prometheus(extra, prometheus, bad),
    }
    known = {name: value for name, value in given.items() if value is not None}
    try:
        return LatencySettings(objectives=objectives, source=Source(word), **known)
    except ConfigurationError as error:
        raise bad("extra", "incomplete or contradicts itself", str(error)) from None


def _objectives(value: Any, bad: Complaint) -> tuple[Objective, ...]:
    if not isinstance(value, str):
        raise bad("extra.objective", values.shown(value), "write a text such as: ttft p95 < 2 s; itl p99 < 100 ms")
    try:
        return parse_objectives(value)
    except ConfigurationError as error:
        raise bad("extra.objective", values.shown(value), str(error)) from None


def _whole(name: str, value: Any, bad: Complaint, advice: str) -> int | None:
    if value is None:
        return None
    found = values.number(value)
    if found is None or found != int(found):
        raise bad(f"extra.{name}", values.shown(value), advice)
    return int(found)


def _on_unknown(value: Any, bad: Complaint) -> str | None:
    word = value.strip().lower() if isinstance(value, str) else value
    if word not in (None, "hold", "cap"):
        raise bad("extra.on_unknown", values.shown(value), "write hold or cap")
    return word


def _query(value: Any, objectives: tuple[Objective, ...], bad: Complaint) -> Mapping[Metric, str] | None:
    """PromQL by metric. A text is one metric's; it may begin with a brace, so JSON is tried and not assumed."""
    field = "extra.prometheus_query"
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        value = parsed if isinstance(parsed, dict) else value
    match value:
        case None:
            return None
        case str(text):
            metrics = list(dict.fromkeys(objective.metric for objective in objectives))
            if len(metrics) > 1:
                raise bad(field, "one expression", f"the objective promises {', '.join(metrics)}; {_QUERY}")
            return MappingProxyType({metrics[0]: text.strip()})
        case dict():
            for name, text in value.items():
                if name not in list(Metric):
                    raise bad(field, f"an object with the name {name!r}", f"write one of {', '.join(Metric)}")
                if not isinstance(text, str) or not text.strip():
                    raise bad(f"{field}[{name!r}]", values.kind(text), "write PromQL")
            return MappingProxyType({Metric(name): text.strip() for name, text in value.items()})
        case _:
            raise bad(field, values.kind(value), _QUERY)


def _prometheus(extra: Mapping[str, Any], connection: ConnectionLike | None, bad: Complaint) -> dict[str, Any]:
    """Where Prometheus is, from the field or from a connection of its own."""
    url, conn_id = extra.get("prometheus_url"), extra.get("prometheus_conn_id")
    if url is not None and conn_id is not None:
        raise bad("extra.prometheus_url", "set beside prometheus_conn_id", "set only one of them")
    if url is not None:
        return {"prometheus_url": _root(str(url), None, None, _renamed(bad, "extra.prometheus_url"))}
    if conn_id is None:
        return {}
    if connection is None:
        raise bad("extra.prometheus_conn_id", values.shown(conn_id), "and that connection was not looked up")
    return _of_connection(connection)


def _of_connection(connection: ConnectionLike) -> dict[str, Any]:
    def bad(field: str, shown: str, advice: str) -> ConfigurationError:
        return ConfigurationError(f"Connection {connection.conn_id!r} (to Prometheus): {field} is {shown}; {advice}")

    try:
        extra = json.loads(connection.extra or "{}") or {}
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise bad("extra", "no JSON object", 'write its headers, e.g. {"X-Scope-OrgID": "team"}')
    verify = values.verify("extra.verify", extra.get("verify"), bad)
    named = {name: text for name, text in extra.items() if name not in _NO_HEADERS and name != "verify"}
    headers = dict(values.headers("extra", {name: text for name, text in named.items() if values.filled(text)}, bad))
    login, password = connection.login or "", connection.password or ""
    if login or password:
        if any(name.lower() == "authorization" for name in headers):
            advice = "login and password are sent as this header; set only one"
            raise bad("extra['Authorization']", values.NOT_SHOWN, advice)
        basic = base64.b64encode(f"{login}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {basic}" if login else f"Bearer {password}"
        if not values.HEADER_VALUE.fullmatch(headers["Authorization"]):
            raise bad("password", values.NOT_SHOWN, "it has a line break or a non-ASCII character")
    given = {
        "prometheus_url": _root(connection.host, connection.port, connection.schema, bad),
        "prometheus_headers": MappingProxyType(headers),
        "prometheus_verify": verify,
    }
    return {name: value for name, value in given.items() if value is not None}


def _root(host: str | None, port: int | None, schema: str | None, bad: Complaint) -> str:
    roots = base_urls(host=host, port=port, schema=schema, tls=None, bad=bad)
    if len(roots) > 1:
        raise bad("host", ", ".join(roots), "name one Prometheus; one that sees them all is needed")
    return roots[0]


def _renamed(bad: Complaint, field: str) -> Complaint:
    """The same complaint, about `field`: a URL's parts are all in it."""
    return lambda _field, shown, advice: bad(field, shown, advice)
