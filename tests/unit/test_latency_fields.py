"""The connection's latency fields: every form, every mistake, the second connection, and no secret in any message."""

from __future__ import annotations

import base64
import json
import traceback

import pytest
from airflow.sdk import Connection

from airflow_llm_provider.core.objective import Metric, format_objectives
from airflow_llm_provider.endpoint.settings import LatencySettings, Source
from airflow_llm_provider.exceptions import ConfigurationError, ConnectionMissingError
from airflow_llm_provider.hooks.connection import prometheus_conn_id, read_connection, secrets_of
from airflow_llm_provider.hooks.vllm import VLLMHook

SECRET = "s3cr3t-t0ken"
BASIC = base64.b64encode(f"me:{SECRET}".encode()).decode()
OBJECTIVE = "ttft p95 < 2 s; itl p99 < 100 ms"
QUERY = "histogram_quantile({quantile}, sum by (le) (rate(ttft_bucket[{period}])))"


def connection(extra: dict[str, object]) -> Connection:
    return Connection(conn_id="llm", conn_type="vllm", host="http://gpu1:8000", extra=json.dumps(extra))


def prometheus(host: str | None = "http://prometheus:9090", extra: object = None, **fields) -> Connection:
    text = extra if extra is None or isinstance(extra, str) else json.dumps(extra)
    return Connection(conn_id="prom", conn_type="http", host=host, extra=text, **fields)


def latency(extra: dict[str, object], second: Connection | None = None) -> LatencySettings | None:
    return read_connection(connection(extra), second).latency


def through_prometheus(**fields: object) -> dict[str, object]:
    return {"objective": "ttft p95 < 2 s", "latency_source": "prometheus", "prometheus_query": QUERY, **fields}


def test_nothing_is_promised():
    assert latency({}) is None
    assert latency({"sampling_period_s": 10, "prometheus_query": QUERY}) is None


def test_defaults():
    settings = latency({"objective": OBJECTIVE, "latency_source": "vllm"})
    assert settings is not None
    assert format_objectives(settings.objectives) == OBJECTIVE
    assert settings.source is Source.VLLM
    assert (settings.sampling_period_s, settings.healthy_for_s, settings.unknown_alert_s) == (30.0, 60.0, 1800.0)
    assert (settings.only_batch_client, settings.canary_priority) == (False, 0)
    assert (settings.on_unknown, settings.unknown_limit) == ("hold", 1)


def test_everything_said_as_text_as_uris_and_forms_do():
    settings = latency(
        {
            "objective": "ttft p95 < 2 s",
            "latency_source": " Canary ",
            "sampling_period_s": "12.5",
            "healthy_for_s": "90",
            "only_batch_client": "true",
            "canary_priority": "-1",
            "on_unknown": "CAP",
            "unknown_limit": "2",
            "unknown_alert_s": "60",
        }
    )
    assert settings is not None
    assert settings.source is Source.CANARY
    assert (settings.sampling_period_s, settings.healthy_for_s, settings.unknown_alert_s) == (12.5, 90.0, 60.0)
    assert (settings.only_batch_client, settings.canary_priority) == (True, -1)
    assert (settings.on_unknown, settings.unknown_limit) == ("cap", 2)


@pytest.mark.parametrize("query", [QUERY, {"ttft": QUERY}, json.dumps({"ttft": QUERY}), f" {QUERY}\n"])
def test_query_as_text_or_by_metric(query):
    settings = latency(through_prometheus(prometheus_query=query, prometheus_url="http://prometheus:9090/"))
    assert settings is not None
    assert settings.prometheus_url == "http://prometheus:9090"
    assert settings.prometheus_query == {Metric.TTFT: QUERY}


def test_promql_that_begins_with_a_brace_is_no_object():
    query = '{__name__="ttft:p95"}'
    settings = latency(through_prometheus(prometheus_query=query, prometheus_url="http://prometheus:9090"))
    assert settings is not None
    assert settings.prometheus_query == {Metric.TTFT: query}


@pytest.mark.parametrize(
    ("extra", "field", "shown", "advice"),
    [
        ({"objective": "ttft p95 < 2 s"}, "extra.objective", '"ttft p95 < 2 s"', "set latency_source"),
        ({"latency_source": "vllm"}, "extra.latency_source", '"vllm"', "set both, or neither"),
        (
            {"objective": OBJECTIVE, "latency_source": "gateway"},
            "extra.latency_source",
            '"gateway"',
            "prometheus, vllm",
        ),
        ({"objective": "ttft", "latency_source": "vllm"}, "extra.objective", '"ttft"', "ttft p95 < 2 s"),
        ({"objective": ["ttft"], "latency_source": "vllm"}, "extra.objective", "a list", "ttft p95 < 2 s"),
        (through_prometheus(), "extra", "incomplete", "set prometheus_url or prometheus_conn_id"),
        (through_prometheus(prometheus_query=None), "extra", "incomplete", "set prometheus_url"),
        (
            through_prometheus(prometheus_url="http://p", objective=OBJECTIVE),
            "extra.prometheus_query",
            "one expression",
            "ttft, itl",
        ),
        (
            through_prometheus(prometheus_url="http://p", objective=OBJECTIVE, prometheus_query={"ttft": QUERY}),
            "extra",
            "incomplete",
            "no expression for it",
        ),
        (
            through_prometheus(
                prometheus_url="http://p", objective="ttft p95 < 2 s; ttft p99 < 5 s", prometheus_query="ttft:p95"
            ),
            "extra",
            "incomplete",
            "write {quantile} in it",
        ),
        (
            through_prometheus(prometheus_query={"tpot": QUERY}),
            "extra.prometheus_query",
            "'tpot'",
            "ttft, itl, e2e",
        ),
        (through_prometheus(prometheus_query={"ttft": 5}), "extra.prometheus_query['ttft']", "a number", "PromQL"),
        (through_prometheus(prometheus_query=[QUERY]), "extra.prometheus_query", "a list", "PromQL"),
        (through_prometheus(prometheus_url="ftp://p"), "extra.prometheus_url", "ftp://", "http"),
        (through_prometheus(prometheus_url="http://a,http://b"), "extra.prometheus_url", "http://a, http://b", "one"),
        (
            through_prometheus(prometheus_url="http://p", prometheus_conn_id="prom"),
            "extra.prometheus_url",
            "beside prometheus_conn_id",
            "only one",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_field_and_the_remedy(extra, field, shown, advice):
    with pytest.raises(ConfigurationError) as caught:
        latency(extra)
    message = str(caught.value)
    assert message.startswith(f"Connection 'llm': {field} is ")
    assert shown in message
    assert advice in message


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("sampling_period_s", 0, "seconds above 0"),
        ("healthy_for_s", "long", "seconds above 0"),
        ("unknown_alert_s", -1, "seconds above 0"),
        ("only_batch_client", "perhaps", "true or false"),
        ("canary_priority", 1.5, "whole number"),
        ("unknown_limit", "few", "whole number of 1 or more"),
        ("on_unknown", "run", "hold or cap"),
        ("on_unknown", 1, "hold or cap"),
    ],
)
def test_a_bad_number_or_word_is_named(name, value, advice):
    with pytest.raises(ConfigurationError, match=rf"'llm': extra\.{name} is .*{advice}"):
        latency({"objective": OBJECTIVE, "latency_source": "vllm", name: value})


def test_unknown_limit_of_none_is_refused_by_the_settings():
    with pytest.raises(ConfigurationError, match="unknown_limit must be 1 or more, not 0"):
        latency({"objective": OBJECTIVE, "latency_source": "vllm", "unknown_limit": 0})


# ── the second connection ────────────────────────────────────────────────────────────────────────────────────────────

BY_ID = through_prometheus(prometheus_conn_id="prom")


@pytest.mark.parametrize(
    ("second", "url"),
    [
        (prometheus(), "http://prometheus:9090"),
        (prometheus("prometheus", port=9090), "http://prometheus:9090"),
        (prometheus("prometheus", port=443, schema="https"), "https://prometheus:443"),
        (prometheus("https://metrics.corp/prometheus/"), "https://metrics.corp/prometheus"),
    ],
)
def test_where_it_is(second, url):
    settings = latency(BY_ID, second)
    assert settings is not None
    assert settings.prometheus_url == url
    assert settings.prometheus_headers == {}


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"login": "me", "password": SECRET}, {"Authorization": f"Basic {BASIC}"}),
        ({"password": SECRET}, {"Authorization": f"Bearer {SECRET}"}),
        ({"extra": {"X-Scope-OrgID": "team", "timeout": 5, "proxies": {}}}, {"X-Scope-OrgID": "team"}),
        ({"extra": {"Authorization": f"Bearer {SECRET}"}}, {"Authorization": f"Bearer {SECRET}"}),
    ],
    ids=["login", "token", "header", "token as header"],
)
def test_what_is_sent_there(fields, headers):
    settings = latency(BY_ID, prometheus(**fields))
    assert settings is not None
    assert settings.prometheus_headers == headers
    assert SECRET not in repr(settings)
    assert BASIC not in repr(settings)


def test_certificates_there():
    settings = latency(BY_ID, prometheus("https://p", extra={"verify": "/etc/ssl/ours.pem"}))
    assert settings is not None
    assert settings.prometheus_verify == "/etc/ssl/ours.pem"


@pytest.mark.parametrize(
    ("second", "field"),
    [
        (prometheus(None), "host is empty"),
        (prometheus("http://a,http://b"), "host is http://a, http://b"),
        (prometheus(extra="[1]"), "extra is no JSON object"),
        (prometheus(extra={"X-A": 5}), "extra['X-A'] is a number"),
        (prometheus(extra={"Authorization": f"Bearer {SECRET}"}, password=SECRET), "extra['Authorization'] is a value"),
        (prometheus(password=f"{SECRET}\n"), "password is a value"),
        (prometheus(extra={"X-A": f"{SECRET}\n"}), "extra['X-A'] is a value"),
        (prometheus(f"http://me:{SECRET}@p"), "host is a URL with a user"),
    ],
)
def test_a_bad_value_there_names_that_connection_and_no_secret(second, field):
    with pytest.raises(ConfigurationError) as caught:
        latency(BY_ID, second)
    assert str(caught.value).startswith(f"Connection 'prom' (to Prometheus): {field}")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_secrets_of_names_what_is_sent_to_prometheus():
    settings = read_connection(connection(BY_ID), prometheus(login="me", password=SECRET))
    assert {f"Basic {BASIC}", BASIC, SECRET} <= set(secrets_of(settings))


def test_prometheus_conn_id():
    assert prometheus_conn_id(connection({"prometheus_conn_id": " prom "})) == "prom"
    assert prometheus_conn_id(connection({"prometheus_conn_id": " "})) is None
    assert prometheus_conn_id(connection({})) is None


def environment(monkeypatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LLM", connection(BY_ID).as_json())
    monkeypatch.setenv("AIRFLOW_CONN_PROM", prometheus(password=SECRET).as_json())


def test_the_hook_looks_it_up(monkeypatch):
    environment(monkeypatch)
    settings = VLLMHook("llm").get_settings().latency
    assert settings is not None
    assert settings.prometheus_url == "http://prometheus:9090"
    assert settings.prometheus_headers == {"Authorization": f"Bearer {SECRET}"}


async def test_the_hook_looks_it_up_for_async_code(monkeypatch):
    environment(monkeypatch)
    assert await VLLMHook("llm").aget_settings() == VLLMHook("llm").get_settings()


async def test_a_missing_one_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LLM", connection(BY_ID).as_json())
    remedy = "prometheus_conn_id is 'prom'.*airflow connections add prom --conn-type http"
    with pytest.raises(ConnectionMissingError, match=remedy):
        VLLMHook("llm").get_settings()
    with pytest.raises(ConnectionMissingError, match=remedy):
        await VLLMHook("llm").aget_settings()
