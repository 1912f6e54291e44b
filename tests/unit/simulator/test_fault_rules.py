from __future__ import annotations

import re
from math import inf, nan
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest

from airflow_llm_provider.simulator.fault import rules_of_json
from airflow_llm_provider.testing import Fault, FaultKind, Rule, SimulatedVLLM, StubVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator

HANG: dict[str, Any] = {"kind": "hang"}


@pytest.fixture(params=[SimulatedVLLM, StubVLLM])
def server(request: pytest.FixtureRequest) -> Iterator[SimulatedVLLM | StubVLLM]:
    with request.param("m") as running:
        yield running


async def send(method: str, url: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, url, data=data) as answer,
    ):
        return answer.status, orjson.loads(await answer.read())


def answer(**fields: Any) -> list[dict[str, Any]]:
    return [{"fault": {"kind": "answer", **fields}}]


MISTAKES = [
    (None, "Faults are a list of rules, not None"),
    (5, "Faults are a list of rules, not 5"),
    ({"fault": HANG}, "Faults are a list of rules"),
    (["x"], "A rule's JSON is an object, not 'x'."),
    ([{}], "A rule needs its fault"),
    ([{"fault": None}], "A fault's JSON is an object, not None."),
    ([{"fault": {}}], "A fault needs its kind"),
    ([{"fault": {"kind": "nonsense"}}], "A fault's kind is one of answer, abort,"),
    ([{"fault": {"kind": []}}], "A fault's kind is one of"),
    ([{"fault": {**HANG, "stat": 5}}], "A fault has no field stat. It has kind, status,"),
    ([{"fault": HANG, "evry": 2}], "A rule has no field evry. It has fault, contains, every,"),
    ([{"fault": HANG, "_seen": {}}], "A rule has no field _seen."),
    ([{"fault": HANG, "every": 0}], "A rule's every is a whole number of 1 or more, not 0."),
    ([{"fault": HANG, "every": "x"}], "A rule's every is a whole number"),
    ([{"fault": HANG, "every": True}], "A rule's every is a whole number"),
    ([{"fault": HANG, "first": "x"}], "A rule's first is a whole number"),
    ([{"fault": HANG, "first_of_each": 1.5}], "A rule's first_of_each is a whole number"),
    ([{"fault": HANG, "contains": 5}], "A rule's contains is text, not 5."),
    (answer(status="abc"), "A fault's status is a whole number of 200 to 599, not 'abc'."),
    (answer(status=99), "A fault's status is"),
    (answer(status=100), "A fault's status is"),
    (answer(status=1000), "A fault's status is"),
    (answer(body=None), "A fault's body is text, not None."),
    (answer(body=5), "A fault's body is text, not 5."),
    (answer(headers=5), "A fault's headers is an object of names and texts"),
    (answer(headers={"a": 5}), "A fault's headers is"),
    (answer(headers={"a": "x\r\ny: z"}), "A fault's headers is"),
    (answer(headers={"a b": "x"}), "A fault's headers is"),
    (answer(content_type=5), "A fault's content_type is text of one line, not 5."),
    (answer(content_type="a\nb"), "A fault's content_type is"),
    ([{"fault": {"kind": "slow", "delay_s": "x"}}], "A fault's delay_s is a finite number of 0 or more, not 'x'."),
    ([{"fault": {"kind": "slow", "delay_s": -1}}], "A fault's delay_s is"),
]


@pytest.mark.parametrize(("rules", "words"), MISTAKES, ids=lambda value: str(value)[:60])
def test_what_could_not_be_acted_out_is_refused_when_it_is_told(rules: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        rules_of_json(orjson.dumps(rules))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault(kind="hang"),
        lambda: Fault.slow(nan),
        lambda: Fault.slow(inf),
        lambda: Fault.answer(99),
        lambda: Rule(fault="hang"),
        lambda: Rule(fault=Fault.busy(), every=-1),
    ],
)
def test_in_python_too(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^A (fault|rule)'s "):
        make()


def test_a_body_may_be_told_as_what_it_is() -> None:
    (rule,) = rules_of_json(orjson.dumps(answer(status=503, body={"error": [1]}, headers={"Retry-After": "5"})))
    assert rule.fault == Fault.answer(503, {"error": [1]}, headers={"Retry-After": "5"})
    assert rules_of_json(b"") == []


def test_a_rules_memory_is_its_own() -> None:
    """Two rules that say the same are the same, and strike each for itself."""
    first, second = [Rule(fault=Fault(kind=FaultKind.RESET), first_of_each=1) for _ in range(2)]
    assert first({}, 1) == second({}, 1) == Fault(kind=FaultKind.RESET)
    assert first == second


async def test_nonsense_changes_nothing(server: SimulatedVLLM | StubVLLM) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    assert await send("PUT", f"{server.url}/_faults", answer(status=418, body={"a": 1})) == (200, {"rules": 1})
    for body, words in ((b"{", "unexpected"), (b"null", "list of rules"), (orjson.dumps(answer(status=9)), "status")):
        status, told = await send("PUT", f"{server.url}/_faults", body)
        assert (status, told["error"]["code"]) == (400, 400)
        assert words in told["error"]["message"]
    assert await send("POST", f"{server.url}/v1/chat/completions", chat) == (418, {"a": 1})


STATES: list[tuple[Any, str]] = [
    (b"{", "unexpected end"),
    (b"", "Input"),
    ([], 'The state is set with an object, such as {"draining": true}, not with [].'),
    (None, "The state is set with an object"),
    ({"draining": "no"}, "draining is true or false, not 'no'."),
    ({"draining": 0}, "draining is true or false, not 0."),
    ({"root": 5}, "root is text, not 5."),
    ({"root": "others", "draining": None}, "draining is true or false, not None."),
    ({"fault": None}, "The state has no field fault that could be set. It has"),
    ({"slots": 2}, "The state has no field slots"),
]


@pytest.mark.parametrize(("body", "words"), STATES, ids=str)
async def test_a_state_that_makes_no_sense(server: SimulatedVLLM | StubVLLM, body: Any, words: str) -> None:
    before = await send("GET", f"{server.url}/v1/models", b"")
    status, told = await send("PATCH", f"{server.url}/_state", body)
    assert (status, told["error"]["code"]) == (400, 400)
    assert words in told["error"]["message"]
    assert await send("GET", f"{server.url}/v1/models", b"") == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("models", []),
        ("models", "m"),
        ("models", [""]),
        ("version", 5),
        ("api_key", 5),
        ("max_prompt_chars", 0),
        ("delay_s", -1),
        ("delay_s", "x"),
    ],
)
async def test_a_stubs_state_that_makes_no_sense(field: str, value: Any) -> None:
    with StubVLLM() as stub:
        status, told = await send("PATCH", f"{stub.url}/_state", {field: value})
        assert (status, told["error"]["message"].split(" ")[0]) == (400, field)
        good = {"models": ["a", "b"], "api_key": None, "max_prompt_chars": 9, "delay_s": 0}
        assert await send("PATCH", f"{stub.url}/_state", good) == (200, good)
        assert stub.behaviour.models == ("a", "b")


@pytest.mark.parametrize("behaviour", [{"delay_s": nan}, {"max_prompt_chars": -1}, {"model": ""}, {"root": None}])
def test_an_impossible_stub(behaviour: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=" is "):
        StubVLLM(**behaviour)
