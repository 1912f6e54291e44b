"""Reading connections: every form people write them in, every mistake, and no secret in any message."""

from __future__ import annotations

import json
import logging
import re
import shlex
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
from airflow.sdk import Connection
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.get_provider_info import get_provider_info
from airflow_llm_provider.hooks.connection import EXTRA_KEYS, read_connection, secrets_of, warn_of_unknown
from airflow_llm_provider.hooks.vllm import VLLMHook

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t-t0ken"


@pytest.fixture(autouse=True)
def _nothing_warned_of_yet():
    warn_of_unknown.cache_clear()


def connection(host: str | None = "http://gpu1:8000", extra: object = None, **fields) -> Connection:
    text = extra if extra is None or isinstance(extra, str) else json.dumps(extra)
    return Connection(conn_id="llm", conn_type="vllm", host=host, extra=text, **fields)


def complaint(conn: Connection) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_connection(conn)
    assert "'llm'" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "roots"),
    [
        ({"host": "http://gpu1:8000"}, ["http://gpu1:8000"]),
        ({"host": " http://gpu1:8000/ "}, ["http://gpu1:8000"]),
        ({"host": "http://gpu1:8000/v1"}, ["http://gpu1:8000"]),
        ({"host": "http://gpu1:8000/v1/"}, ["http://gpu1:8000"]),
        ({"host": "https://gateway/llm/v1"}, ["https://gateway/llm"]),
        ({"host": "https://gateway/llm"}, ["https://gateway/llm"]),
        ({"host": "HTTP://GPU1:8000"}, ["http://gpu1:8000"]),
        ({"host": "http://a:1/v1, http://b:2/,,http://a:1"}, ["http://a:1", "http://b:2"]),
        ({"host": "gpu1", "port": 8000}, ["http://gpu1:8000"]),
        ({"host": "gpu1:8000"}, ["http://gpu1:8000"]),
        ({"host": "gpu1:8000", "port": 8000}, ["http://gpu1:8000"]),
        ({"host": "gpu1,gpu2", "port": 8000}, ["http://gpu1:8000", "http://gpu2:8000"]),
        ({"host": "gpu1", "port": 8000, "schema": "https"}, ["https://gpu1:8000"]),
        ({"host": "gpu1", "port": 8000, "extra": {"tls": True}}, ["https://gpu1:8000"]),
        ({"host": "gpu1", "port": 8000, "extra": {"tls": "false"}}, ["http://gpu1:8000"]),
        ({"host": "https://gpu1", "extra": {"tls": "true"}}, ["https://gpu1"]),
        ({"host": "https://gpu1"}, ["https://gpu1"]),
        ({"host": "::1", "port": 8000}, ["http://[::1]:8000"]),
        ({"host": "[::1]:8000"}, ["http://[::1]:8000"]),
        ({"host": "http://10.0.0.7:8000"}, ["http://10.0.0.7:8000"]),
    ],
)
def test_base_urls(fields, roots):
    assert list(read_connection(connection(**fields)).base_urls) == roots


def test_tells_what_somebody_filled_in_from_what_is_a_default():
    extra = {"verify": "true", "request_timeout_s": 3600, "slots": "", "extra_headers": {}, "nonsense": 1}
    settings = read_connection(connection(extra=extra))
    assert settings.given == {"verify", "request_timeout_s"}
    assert settings == read_connection(connection())  # whoever set it, it is the same endpoint


@pytest.mark.parametrize(
    ("uri", "roots"),
    [
        ("vllm://:key@gpu1:8000/?model=m", ["http://gpu1:8000"]),
        ("vllm://:key@gpu1:8000/https?model=m", ["https://gpu1:8000"]),
        ("vllm://:key@gpu1:8000/v1?model=m", ["http://gpu1:8000"]),
        ("vllm://:key@gpu1:8000?model=m&tls=true", ["https://gpu1:8000"]),
        ("vllm://https://:key@gpu1:8000/?model=m", ["https://gpu1:8000"]),
        ("vllm://https://:key@gpu1:8000/v1?model=m", ["https://gpu1:8000"]),
        ("vllm://https://:key@gateway/llm/v1?model=m", ["https://gateway/llm"]),
        ("vllm://:key@http%3A%2F%2Fa%3A1%2Fv1%2Chttp%3A%2F%2Fb%3A2/?model=m", ["http://a:1", "http://b:2"]),
    ],
)
def test_uri_form(uri, roots):
    settings = read_connection(Connection.from_uri(uri, conn_id="llm"))
    assert list(settings.base_urls) == roots
    assert (settings.api_key, settings.model) == ("key", "m")


def test_uri_carries_every_extra_as_text():
    uri = (
        "vllm://:key@gpu1:8000/?model=m&slots=8&verify=false&connect_timeout_s=2.5&request_timeout_s=60"
        "&extra_headers=%7B%22X-Tenant%22%3A%20%22a%22%7D"
    )
    settings = read_connection(Connection.from_uri(uri, conn_id="llm"))
    assert (settings.slots, settings.verify) == (8, False)
    assert (settings.connect_timeout_s, settings.request_timeout_s) == (2.5, 60.0)
    assert settings.extra_headers == {"X-Tenant": "a"}


@pytest.mark.parametrize("host", ["http://gpu1:8000/v1", "http://a:1,https://b:2/llm/v1"])
def test_survives_airflows_own_round_trip_through_a_uri(host):
    # Airflow's DAG processor caches connections as URIs.
    before = connection(host, {"model": "m", "slots": 8, "extra_headers": {"X-A": "b"}}, password="k/@:1")
    after = Connection.from_uri(before.get_uri(), conn_id="llm")
    assert read_connection(after) == read_connection(before)


@pytest.mark.parametrize("extra", [None, "", " ", "null", "{}"])
def test_nothing_but_a_host(extra):
    settings = read_connection(connection(extra=extra, login="", schema="", password=""))
    assert settings.api_key is None
    assert settings.model is None
    assert settings.slots is None
    assert settings.verify is True
    assert (settings.connect_timeout_s, settings.request_timeout_s) == (10.0, 3600.0)


@pytest.mark.parametrize("empty", ["", " ", None])
def test_fields_the_form_left_empty_are_defaults(empty):
    blank = read_connection(connection(extra=dict.fromkeys(EXTRA_KEYS, empty)))
    assert blank == read_connection(connection())


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (True, True),
        (False, False),
        ("true", True),
        ("False", False),
        (" /etc/ssl/ca.pem ", "/etc/ssl/ca.pem"),
    ],
)
def test_verify(value, meant):
    assert read_connection(connection(extra={"verify": value})).verify == meant


@pytest.mark.parametrize("headers", [{"X-A": "b"}, '{"X-A": "b"}'])
def test_extra_headers_as_object_or_as_the_form_gives_them(headers):
    assert read_connection(connection(extra={"extra_headers": headers})).extra_headers == {"X-A": "b"}


@pytest.mark.parametrize("slots", [8, 8.0, "8"])
def test_slots(slots):
    settings = read_connection(connection(extra={"slots": slots}))
    assert settings.slots == 8
    assert type(settings.slots) is int


@pytest.mark.parametrize(
    ("fields", "field", "shown", "advice"),
    [
        ({"host": None}, "host", "empty", "http://gpu1:8000"),
        ({"host": " , "}, "host", "empty", "http://gpu1:8000"),
        ({"host": "ftp://gpu1"}, "host", "ftp://", "http://gpu1:8000"),
        ({"host": "http://gpu 1"}, "host", "'http://gpu 1'", "http://gpu1:8000"),
        ({"host": "http://{{ var.value.x }}"}, "host", "var.value", "http://gpu1:8000"),
        ({"host": "http://:8000"}, "host", "'http://:8000'", "http://gpu1:8000"),
        ({"host": "http://gpu1:80000"}, "host", "'http://gpu1:80000'", "0 to 65535"),
        ({"host": "http://[::1"}, "host", "no URL", "http://gpu1:8000"),
        ({"host": "http://gpu1:8000/v1/chat/completions"}, "host", "completions", "http://gpu1:8000"),
        ({"host": "gpu1/v1", "schema": "v1"}, "host", "'gpu1/v1'", "http://gpu1:8000"),
        ({"host": "http://gpu1:8000", "port": 9000}, "port", "9000", "leave the port empty"),
        ({"host": "gpu1", "schema": "grpc"}, "schema", "'grpc'", "http or https"),
        ({"host": "http://gpu1", "schema": "https"}, "schema", "https", "only one"),
        ({"host": "http://gpu1", "extra": {"tls": True}}, "tls", "https", "only one"),
        ({"extra": {"tls": "maybe"}}, "extra.tls", '"maybe"', "true or false"),
        ({"extra": "model=m"}, "extra", "no JSON", "model"),
        ({"extra": ["m"]}, "extra", "a list", "JSON object"),
        ({"extra": {"model": 7}}, "extra.model", "7", "string"),
        ({"extra": {"slots": "many"}}, "extra.slots", '"many"', "256"),
        ({"extra": {"slots": 0}}, "extra.slots", "0", "256"),
        ({"extra": {"slots": 1.5}}, "extra.slots", "1.5", "256"),
        ({"extra": {"slots": True}}, "extra.slots", "true", "256"),
        ({"extra": {"slots": [8]}}, "extra.slots", "a list", "256"),
        ({"extra": {"verify": "flase"}}, "extra.verify", '"flase"', "absolute path"),
        ({"extra": {"verify": "certs/ca.pem"}}, "extra.verify", '"certs/ca.pem"', "absolute path"),
        ({"extra": {"verify": 1}}, "extra.verify", "1", "true, false"),
        ({"extra": {"connect_timeout_s": 0}}, "extra.connect_timeout_s", "0", "seconds above 0"),
        ({"extra": {"connect_timeout_s": "nan"}}, "extra.connect_timeout_s", '"nan"', "seconds above 0"),
        ({"extra": {"request_timeout_s": "10s"}}, "extra.request_timeout_s", '"10s"', "seconds above 0"),
        ({"extra": {"request_timeout_s": -1}}, "extra.request_timeout_s", "-1", "seconds above 0"),
        ({"extra": {"request_timeout_s": 10**400}}, "extra.request_timeout_s", "1000", "seconds above 0"),
        ({"extra": {"extra_headers": [1]}}, "extra.extra_headers", "a list", "X-Tenant"),
        ({"extra": {"extra_headers": {"X A": "b"}}}, "extra.extra_headers", "'X A'", "header name"),
        ({"extra": {"extra_headers": {"X-A": 7}}}, "extra.extra_headers['X-A']", "a number", "string"),
        ({"extra": {"extra_headers": {"X-A": "1", "x-a": "2"}}}, "extra.extra_headers", "twice", "keep one"),
    ],
)
def test_a_bad_value_is_named_with_its_field_and_the_remedy(fields, field, shown, advice):
    message = complaint(connection(**fields))
    assert f": {field} is " in message
    assert shown in message
    assert advice in message


@pytest.mark.parametrize(
    "fields",
    [
        {"password": f"{SECRET}\n"},
        {"password": f" {SECRET}"},
        {"password": f"{SECRET}é"},
        {"login": SECRET},
        {"host": f"http://user:{SECRET}@gpu1:8000"},
        {"host": f"http://{SECRET}@gpu1:8000"},
        {"host": f"http://user:{SECRET}@[gpu1:8000"},
        {"host": f"http://user:{SECRET}/more@gpu1"},
        {"host": f"http://user:1,{SECRET}@gpu1"},
        {"host": f"http:/user:{SECRET}@gpu1"},
        {"host": f"http://user:12/{SECRET}@gpu1"},
        {"host": f"http://gpu1:8000?key={SECRET}"},
        {"host": f"http://gpu1:8000/#{SECRET}"},
        {"extra": f'{{"extra_headers": {{"X-Key": "{SECRET}"}}'},
        {"extra": {"extra_headers": SECRET}},
        {"extra": {"extra_headers": [SECRET]}},
        {"extra": {"extra_headers": {"X-Key": [SECRET]}}},
        {"extra": {"extra_headers": {"X-Key": f"{SECRET}\r\nX-Evil: 1"}}},
        {"extra": {"extra_headers": {"X-Key": f"{SECRET} "}}},
        {"extra": {"extra_headers": {"authorization": f"Bearer {SECRET}"}}, "password": SECRET},
        {"extra": {"slots": {"key": SECRET}}},
        {"extra": {"model": [SECRET]}},
    ],
)
def test_no_complaint_shows_a_secret(fields, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError) as caught:
        read_connection(connection(**fields))
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text


def test_settings_do_not_show_secrets():
    settings = read_connection(connection(password=SECRET, extra={"extra_headers": {"X-Key": f"{SECRET}2"}}))
    assert settings.api_key == SECRET
    assert SECRET not in f"{settings!r} {settings}"


def test_unknown_keys_are_one_warning_that_names_them_and_the_known_ones(caplog):
    read_connection(connection(extra={"modle": SECRET, "slot": 8, "model": "m"}))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "modle, slot." in record.getMessage()
    assert all(key in record.getMessage() for key in EXTRA_KEYS)
    assert SECRET not in record.getMessage()


@pytest.mark.parametrize(("key", "meant"), [("windw", "window"), ("objectives", "objective"), ("headrom", "headroom")])
def test_what_is_nearly_a_guard_is_an_error_and_not_ignored(key, meant):
    """A typo there would let batch run as if nothing had been said."""
    with pytest.raises(ConfigurationError, match=rf"extra\.{key} is no field; write {meant}"):
        read_connection(connection("http://gpu1:8000", json.dumps({key: "x"})))


def test_unknown_keys_are_warned_of_once_and_not_at_every_read(caplog):
    first, other = connection(extra={"modle": "a"}), connection(extra={"modle": "b", "slot": 8})
    second = Connection(conn_id="llm2", conn_type="vllm", host="http://gpu1:8000", extra='{"modle": "a"}')
    for each in (first, first, other, second, other, first):
        read_connection(each)
    named = [(record.args[0], record.args[1]) for record in caplog.records]
    assert named == [("llm", "modle"), ("llm", "modle, slot"), ("llm2", "modle")]


def test_secrets_of_names_key_header_values_and_bare_tokens():
    settings = read_connection(
        connection(extra={"extra_headers": {"X-Key": "abc", "Authorization": f"Bearer {SECRET}"}})
    )
    assert secrets_of(settings) == ("abc", f"Bearer {SECRET}", SECRET)
    assert secrets_of(read_connection(connection(password=SECRET))) == (SECRET,)


@given(
    host=st.one_of(st.text(), st.from_regex(r"(https?://)?[\w.:\[\]]{0,9}(:\d{0,6})?(/v1)?/?,?")),
    port=st.one_of(st.none(), st.integers(0, 70000)),
    schema=st.sampled_from([None, "", "http", "https", "v1", "a/b", "/"]),
)
def test_any_host_is_a_list_of_roots_or_a_complaint(host, port, schema):
    with suppress(ConfigurationError):  # and nothing else
        settings = read_connection(connection(host, port=port, schema=schema))
        assert all(url == url.rstrip("/").removesuffix("/v1") for url in settings.base_urls)


@given(
    key=st.sampled_from(EXTRA_KEYS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)
def test_any_extra_value_is_read_or_complained_about(key, value):
    with suppress(ConfigurationError):
        read_connection(connection(extra={key: value}))


def test_the_documented_forms_are_one_connection(monkeypatch):
    text = (ROOT / "docs" / "connection.md").read_text()
    forms = re.findall(r"^export AIRFLOW_CONN_VLLM_DEFAULT='(.*?)'$", text, re.MULTILINE | re.DOTALL)
    read = []
    for form in forms:
        monkeypatch.setenv("AIRFLOW_CONN_VLLM_DEFAULT", form)
        read.append(VLLMHook().get_settings())
    (command,) = re.findall(r"^airflow connections add vllm_default (.*?)\n```", text, re.MULTILINE | re.DOTALL)
    words = shlex.split(command.replace("\\\n", ""))
    given = dict(zip(words[::2], words[1::2], strict=True))
    read.append(
        read_connection(
            connection(given["--conn-host"], given["--conn-extra"], password=given["--conn-password"]),
        )
    )
    assert len(read) == 4
    assert read[0].base_urls == ("http://gpu1:8000",)
    assert (read[0].api_key, read[0].model, read[0].slots) == ("my-api-key", "Qwen/Qwen3-8B", 256)
    assert all(settings == read[0] for settings in read)


def test_the_documented_extras_of_latency_can_be_read():
    text = (ROOT / "docs" / "connection.md").read_text()
    found = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [read_connection(connection(extra=extra)).latency.source for extra in found] == ["prometheus"]


def test_every_extra_key_and_option_is_documented():
    text = (ROOT / "docs" / "connection.md").read_text()
    assert [key for key in EXTRA_KEYS if f"extra `{key}`" not in text] == []
    options = get_provider_info()["config"]["llm_batch"]["options"]
    documented = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+?) \|", text, re.MULTILINE)
    assert {name: "" if default.startswith("empty") else default for name, default in documented} == {
        name: option["default"] for name, option in options.items()
    }
