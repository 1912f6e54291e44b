from __future__ import annotations

from typing import Any

import pytest
from batch_fakes import job_of

from airflow_llm_provider.batch.shaping import shaping_of
from airflow_llm_provider.core.prompt import RequestSpec, RequestTemplate, RowRejectedError
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.storage.source import ListSource


def build(row: dict[str, Any], **spec: Any) -> tuple[str, dict[str, Any]]:
    return RequestTemplate(RequestSpec(**spec), model="m").build(row)


def rendered(prompt: str, row: dict[str, Any], **context: Any) -> str:
    _, body = build(row, prompt=prompt, context=context)
    [message] = body["messages"]
    assert message["role"] == "user"
    return message["content"]


def test_a_chat_request() -> None:
    path, body = build(
        {"text": "hello"},
        prompt="Say {{ row.text }}",
        system_prompt="You are {{ row.text|length }}",
        parameters={"n": 1},
    )
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "You are 5"}, {"role": "user", "content": "Say hello"}],
        "n": 1,
    }


def test_a_completions_request() -> None:
    assert build({"a": 1}, prompt="{{ row.a }}", endpoint="completions") == (
        "/v1/completions",
        {"model": "m", "prompt": "1"},
    )


def test_whole_messages() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "{{ row.a }}", "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    _, body = build({"a": "x"}, messages=messages)
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "x", "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    assert messages[1]["content"] == "{{ row.a }}"


def test_a_message_of_parts() -> None:
    image = {"url": "https://pictures.example/{{ row.id }}.png", "detail": "low"}
    parts = [
        {"type": "text", "text": "What is on {{ row.name }}?"},
        {"type": "image_url", "image_url": image, "uuid": None},
        {"type": "x", "x": {"type": "{{ row.name }}", "line": "a\r\nb\n"}, "weight": 1.5},
    ]
    template = RequestTemplate(RequestSpec(messages=[{"role": "user", "content": parts}]), model="m")
    first, second = (template.build({"id": n, "name": f"picture {n}"})[1]["messages"] for n in (1, 2))
    assert first == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is on picture 1?"},
                {
                    "type": "image_url",
                    "image_url": {"url": "https://pictures.example/1.png", "detail": "low"},
                    "uuid": None,
                },
                {"type": "x", "x": {"type": "picture 1", "line": "a\r\nb\n"}, "weight": 1.5},
            ],
        }
    ]
    assert second[0]["content"][1]["image_url"]["url"] == "https://pictures.example/2.png"
    assert image["url"].endswith("{{ row.id }}.png")
    with pytest.raises(RowRejectedError, match="the prompt cannot be rendered"):
        template.build({"id": 1})


@pytest.mark.parametrize(
    ("content", "has"),
    [
        ("{{ row.a }}", False),
        (None, False),
        ([{"type": "text", "text": "a"}], False),
        ([{"type": "text", "text": "{{ row.a }}"}], True),
        ([{"type": "text", "text": "{% if row.a %}a{% endif %}"}], True),
        ([{"type": "text", "text": "a{# not #}"}], True),
        ([{"type": "x", "x": {"y": ["{{ row.a }}"]}}], True),
    ],
)
def test_whether_a_message_has_templates_in_its_parts(content: Any, has: bool) -> None:  # noqa: FBT001 - a parameter
    messages = [{"role": "user", "content": content}]
    assert RequestTemplate(RequestSpec(messages=messages), model="m").has_parts is has


@pytest.mark.parametrize(("text", "told"), [("{{ row.text }}", "templates"), ("a", None)])
def test_a_run_begun_when_parts_were_no_templates_is_another_one(text: str, told: str | None) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    job = job_of("http://127.0.0.1:1", ListSource([{"text": "x"}]), requests=RequestSpec(messages=messages))
    assert shaping_of(job).get("parts") == told


def test_a_part_that_is_no_template() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "{{ rwo.a }}"}]}]
    with pytest.raises(ConfigurationError, match=r"messages\[0\].content\[1\].text uses rwo, which does not exist"):
        build({}, messages=messages)


@pytest.mark.parametrize(
    ("prompt", "row", "text"),
    [
        ("{{ row.items }}", {"items": "field"}, "field"),
        ("{{ row['items'] }}", {"items": "field"}, "field"),
        ("{{ row.keys }}", {"keys": 0}, "0"),
        ("{{ row.a.values }}", {"a": {"values": 2}}, "2"),
        ("{% for k, v in row.items() %}{{ k }}{{ v }}{% endfor %}", {"a": 1, "b": 2}, "a1b2"),
        ("{{ row.a or '' }}|", {"a": None}, "|"),
        ("{{ row.a|default('d', true) }}", {"a": None}, "d"),
        ("{{ row.missing|default('d') }}", {}, "d"),
        ("{{ row['with space'] }}", {"with space": "ok"}, "ok"),
        ("{% if row.a is none %}none{% endif %}", {"a": None}, "none"),
        ("{{ row.a }}", {"a": "<b>{{ row.b }}</b>"}, "<b>{{ row.b }}</b>"),  # no escaping, no second rendering
        ("{{ row.a|tojson }}", {"a": {"b": [1]}}, '{"b": [1]}'),
        ("{% for n in range(3) %}{{ n }}{% endfor %}", {}, "012"),
        ("a\n{{ row.a }}\n\n", {"a": 1}, "a\n1\n"),
    ],
)
def test_what_a_prompt_may_say(prompt: str, row: dict[str, Any], text: str) -> None:
    assert rendered(prompt, row) == text


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{{ row.missing }}", "'missing'.*the row's fields are: a, b"),
        ("{{ row['missing'] }}", "'missing'"),
        ("{{ row.b }}", r"prints a null; write \{\{ … or '' \}\}"),
        ("{{ row.a.b.c }}", "the prompt cannot be rendered"),
        ("{{ 1 / (row.a|length - 1) }}", "ZeroDivisionError"),
        ("{{ row.a + 1 }}", "TypeError"),
        ("{{ range(10000000)|length }}", "OverflowError"),
    ],
)
def test_a_row_that_does_not_fit_is_rejected(prompt: str, words: str) -> None:
    with pytest.raises(RowRejectedError, match=words):
        rendered(prompt, {"a": "x", "b": None})


ESCAPES = [
    "{{ row.__class__ }}",
    "{{ row['__class__'] }}",
    "{{ row|attr('__class__') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ row.a.__init__.__globals__ }}",
    "{{ ''['__class__'] }}",
    "{{ '{0.__class__}'.format(row) }}",
    "{{ ('{0.__class__}'|attr('format'))(row) }}",
    "{{ '%s'.__mod__.__self__ }}",
    "{{ row.update({'a': 2}) }}",
    "{{ row.pop('a') }}",
    "{{ row.clear() }}",
    "{{ row.list.append(1) }}",
    "{{ row.setdefault('z', 1) }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}{{ y }}",
    "{% extends 'x' %}",
    "{{ dict.mro() }}",
    "{{ dict.__base__ }}",
    "{{ range.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{% set n = namespace(x=1) %}{{ n.__class__ }}",
]


@pytest.mark.parametrize("prompt", ESCAPES)
def test_the_sandbox_holds(prompt: str) -> None:
    row = {"a": "x", "list": [1]}
    with pytest.raises((RowRejectedError, ConfigurationError)):
        rendered(prompt, row)
    assert row == {"a": "x", "list": [1]}


@pytest.mark.parametrize("name", ["lipsum", "cycler", "joiner", "config", "env", "request", "rwo", "ds"])
def test_a_name_that_does_not_exist_is_found_when_the_prompt_is_compiled(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"prompt uses {name}, which does not exist; it may use: row, run_id"):
        RequestTemplate(RequestSpec(prompt=f"{{{{ {name}.x }}}}", context={"run_id": "r"}), model="m")


def test_the_runs_values_and_which_of_them_are_used() -> None:
    spec = RequestSpec(prompt="{{ params.tone }}: {{ row.a }}", context={"params": {"tone": "dry"}, "run_id": "r"})
    template = RequestTemplate(spec, model="m")
    assert template.build({"a": 1})[1]["messages"][0]["content"] == "dry: 1"
    assert template.used_context() == {"params": {"tone": "dry"}}


def test_values_used_in_any_template_count() -> None:
    spec = RequestSpec(
        messages=[{"role": "user", "content": "{{ ds }}"}],
        system_prompt="{{ run_id }}",
        context=dict.fromkeys("abc", 1) | {"ds": "d", "run_id": "r"},
    )
    assert RequestTemplate(spec, model="m").used_context() == {"ds": "d", "run_id": "r"}


@pytest.mark.parametrize(
    ("template", "words"),
    [("{{ row.a", "line 1"), ("x\n{% if row.a %}", "line"), ("{{ row.a | nosuch }}", "nosuch"), ("{% bad %}", "bad")],
)
def test_a_template_that_is_none(template: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"prompt is no valid template: .*{words}"):
        RequestTemplate(RequestSpec(prompt=template), model="m")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"prompt": "x", "messages": []}, "not both"),
        ({"prompt": "x", "endpoint": "rerank"}, "endpoint is one of"),
        ({"prompt": "x", "system_prompt": "y", "endpoint": "completions"}, "are chat's"),
        ({"messages": [], "endpoint": "completions"}, "are chat's"),
        ({"parameters": {"temperature": 0}}, "temperature: without prompt"),
        ({"system_prompt": "x"}, "system_prompt: without prompt"),
        ({"prompt": "x", "parameters": {"model": "m"}}, "extra_body may not hold model"),
        ({"prompt": "x", "parameters": {"messages": []}}, "extra_body may not hold messages"),
        ({"prompt": "x", "parameters": {"stop": {1, 2}}}, "JSON cannot say"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no role"),
    ],
)
def test_specs_that_contradict_themselves(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RequestTemplate(RequestSpec(**spec), model="m")


LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}


def test_batch_lines_are_sent_as_they_are() -> None:
    assert build(LINE) == ("/v1/chat/completions", {"model": "m", "messages": []})
    assert build({**LINE, "body": {"model": "other", "stream": True}})[1] == {"model": "other", "stream": True}
    assert build({"url": "/v1/completions", "body": {"prompt": "x"}}) == (
        "/v1/completions",
        {"model": "m", "prompt": "x"},
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"body": "x"}, "no OpenAI batch line"),
        ({"body": None}, "its fields are: custom_id, method, url, body"),
        ({"url": 5}, "no OpenAI batch line"),
        ({"url": "/v1/rerank"}, "'/v1/rerank' is none of"),
        ({"url": "http://elsewhere/v1/chat/completions"}, "is none of"),
        ({"method": "GET"}, "'GET', not POST"),
    ],
)
def test_batch_lines_that_are_none(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RowRejectedError, match=words):
        build({**LINE, **change})


def test_an_error_of_a_template_is_cut() -> None:
    made = RequestTemplate(RequestSpec(prompt="{{ row.text.encode('ascii') }}{{ row[row.text] }}"), model="m")
    with pytest.raises(RowRejectedError) as raised:
        made.build({"text": "x" * 300_000})
    assert len(str(raised.value)) < 1200
