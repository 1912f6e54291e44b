"""What a schema takes, what it refuses, and in which words: JSON schemas and pydantic's types."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, computed_field, field_serializer, field_validator

from airflow_llm_provider.core.output_schema import MOST_ERRORS, NotValid, OutputSchema, Parsed
from airflow_llm_provider.exceptions import ConfigurationError


class Urgency(StrEnum):
    LOW = "low"
    HIGH = "high"


class Ticket(BaseModel):
    subject: str = Field(max_length=20)
    urgency: Urgency
    due: date | None = None

    @field_validator("subject")
    @classmethod
    def _says_something(cls, subject: str) -> str:
        if subject == "boom":
            raise RuntimeError("a bug in the model")
        if not subject.strip():
            raise ValueError("the subject is blank")
        return subject


@dataclass
class Point:
    x: int
    y: int


SCHEMA = {
    "title": "A ticket, please",
    "type": "object",
    "properties": {"subject": {"type": "string"}, "urgency": {"enum": ["low", "high"]}},
    "required": ["subject", "urgency"],
    "additionalProperties": False,
}
GOOD = '{"subject": "Printer", "urgency": "high"}'


@pytest.mark.parametrize("wanted", [Ticket, SCHEMA])
def test_an_instance_is_parsed(wanted: Any) -> None:
    found = OutputSchema(wanted).parse(GOOD)
    assert isinstance(found, Parsed)
    assert found.value["subject"] == "Printer"
    assert found.value["urgency"] == "high"


@pytest.mark.parametrize("around", ["{}", "\n  {}\n", "```json\n{}\n```", "```\n{}```\n"])
def test_space_and_a_fence_around_it_are_no_harm(around: str) -> None:
    assert isinstance(OutputSchema(Ticket).parse(around.replace("{}", GOOD)), Parsed)


@pytest.mark.parametrize(
    ("wanted", "text", "words"),
    [
        (Ticket, "", "no text"),
        (Ticket, "  \n", "no text"),
        (Ticket, None, "no text"),
        (Ticket, "Sure! " + GOOD, "no JSON"),
        (Ticket, GOOD[:-1], "no JSON"),
        (Ticket, GOOD + GOOD, "no JSON"),
        (Ticket, '{"subject": "Printer", "urgency": "sometimes"}', "urgency: Input should be 'low' or 'high'"),
        (Ticket, '{"urgency": "low"}', "subject: Field required"),
        (Ticket, "[]", "the answer: Input should be"),
        (Ticket, '{"subject": " ", "urgency": "low"}', "subject: Value error, the subject is blank"),
        (Ticket, '{"subject": "boom", "urgency": "low"}', "could not be checked: a bug in the model"),
        (SCHEMA, '{"subject": "Printer", "urgency": "sometimes"}', "$.urgency: 'sometimes' is not one of"),
        (SCHEMA, '{"urgency": "low"}', "$: 'subject' is a required property"),
        (SCHEMA, '{"subject": "P", "urgency": "low", "more": 1}', "Additional properties are not allowed"),
        (SCHEMA, "NaN", "no JSON"),
        (float, "NaN", "no JSON"),
        (int, "1" * 30, "64-bit"),
        (Any, "[" * 500 + "]" * 500, "recursion limit"),
        ({}, "[" * 500 + "]" * 500, "nested too deeply"),
        (
            {"$ref": "#/$defs/x", "$defs": {"x": {"items": {"$ref": "#/$defs/x"}}}},
            "[" * 900 + "]" * 900,
            "could not be checked: Recursion",
        ),
    ],
)
def test_what_is_no_instance_is_told_so(wanted: Any, text: str | None, words: str) -> None:
    found = OutputSchema(wanted).parse(text)
    assert isinstance(found, NotValid)
    assert words in found.message


def test_only_some_of_many_errors_are_told_each_of_them_short() -> None:
    numbers = OutputSchema(list[int]).parse('["' + "x" * 5000 + '"' + ', "y"' * 50 + "]")
    by_schema = OutputSchema({"items": {"type": "integer"}}).parse('["' + "x" * 5000 + '"' + ', "y"' * 50 + "]")
    for found in (numbers, by_schema):
        assert isinstance(found, NotValid)
        assert found.message.count("; ") == MOST_ERRORS
        assert found.message.endswith("; …")
        assert len(found.message) < 2000


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [
        (list[Point], '[{"x": 1, "y": 2}]', [{"x": 1, "y": 2}]),
        (dict[str, float], '{"a": 1}', {"a": 1.0}),
        (date, '"2026-12-01"', "2026-12-01"),
        (bool, "true", True),
        ({"type": ["null", "string"]}, "null", None),
    ],
)
def test_any_type_will_do_and_lands_as_json(wanted: Any, text: str, value: Any) -> None:
    assert OutputSchema(wanted).parse(text) == Parsed(value)


def test_what_a_server_is_sent() -> None:
    sent = OutputSchema(SCHEMA).response_format
    assert sent["type"] == "json_schema"
    assert sent["json_schema"] == {"name": "A_ticket_please", "schema": SCHEMA, "strict": True}
    assert OutputSchema(Ticket).response_format["json_schema"]["schema"] == Ticket.model_json_schema()
    assert OutputSchema(list[Ticket]).name == "list"
    assert OutputSchema({"type": "object"}).name == "output"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("Ticket", "must be a JSON schema"),
        (object(), "must be a JSON schema"),
        (type("Plain", (), {}), "must be a JSON schema"),
        ({"type": "json_schema", "json_schema": {}}, "no response_format around it"),
        ({"type": "string", "minLength": "a"}, "is no JSON schema"),
        ({"enum": [object()]}, "what JSON cannot say"),
        ({"$ref": "https://example.com/schema.json"}, "only #/… is followed"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "is not in it"),
        ({"$dynamicRef": "#/$defs/missing"}, "is not in it"),
        ({"pattern": "("}, "is no JSON schema"),
        ('{"type": "object"}', "must be a JSON schema"),
        (Annotated[int, Field(le=10**30)], "what JSON cannot say"),
    ],
)
def test_what_is_no_schema_is_refused_when_the_dag_is_parsed(wanted: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words.replace("(", r"\(")):
        OutputSchema(wanted)


class Other(BaseModel):
    """Is read under other names than it is written in Python, and has what nobody answered."""

    model_config = ConfigDict(extra="forbid", strict=True)
    wants_refund: bool = Field(alias="wantsRefund")
    day: date

    @computed_field
    def year(self) -> int:
        return self.day.year

    @field_serializer("day")
    def _iso(self, day: date) -> str:
        return day.isoformat()


def test_what_lands_is_what_the_type_reads() -> None:
    found = OutputSchema(Other).parse('{"wantsRefund": true, "day": "2026-12-01"}')
    assert found == Parsed({"wantsRefund": True, "day": "2026-12-01"})
    assert isinstance(found, Parsed)
    assert TypeAdapter(Other).validate_json(json.dumps(found.value)).year == 2026


@pytest.mark.parametrize("text", ['{"x": "NaN"}', '{"x": "Infinity"}'])
def test_a_number_that_json_cannot_write_is_none(text: str) -> None:
    assert isinstance(OutputSchema(dict[str, float]).parse(text), NotValid)


def test_properties_stay_in_their_order() -> None:
    """In which a server's grammar has them: a model that answers before it reasons answers otherwise."""
    wanted = {"type": "object", "properties": {"reasoning": {"type": "string"}, "answer": {"type": "string"}}}
    assert list(OutputSchema(wanted).schema["properties"]) == ["reasoning", "answer"]


@pytest.mark.parametrize("wanted", [{"additionalProperties": False}, Other])
def test_a_name_of_the_models_own_making_is_told_short(wanted: Any) -> None:
    found = OutputSchema(wanted).parse(json.dumps({"x" * 100_000: 1}))
    assert isinstance(found, NotValid)
    assert len(found.message) < 3_000


@pytest.mark.parametrize("text", ["```json" + "\n" * 200_000 + "{", "```" * 100_000, "```json", "``````", "```x```"])
def test_a_fence_that_is_none_costs_nothing_and_is_no_json(text: str) -> None:
    assert isinstance(OutputSchema(Ticket).parse(text), NotValid)
