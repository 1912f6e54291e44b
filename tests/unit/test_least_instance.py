"""The least instance of a schema is an instance: of what pydantic writes, and of what people do."""

from __future__ import annotations

import datetime as dt  # noqa: TC003 - pydantic reads it
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID  # noqa: TC003 - the same

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, TypeAdapter

from airflow_llm_provider.testing.instance import least_instance


class Kind(Enum):
    A = "a"
    B = "b"


class Leaf(BaseModel):
    kind: Kind
    day: dt.date
    at: dt.datetime
    key: UUID
    note: str | None
    score: Annotated[float, Field(gt=2, le=9)]
    words: Annotated[int, Field(ge=5, multiple_of=4)]
    below: Annotated[int, Field(lt=-3)]
    name: Annotated[str, Field(min_length=3)]
    pair: tuple[int, str]
    share: Annotated[float, Field(gt=0, lt=1)]
    two: Annotated[set[str], Field(min_length=2)]
    optional: int = 7


class Tree(BaseModel):
    leaf: Leaf
    leaves: Annotated[list[Leaf], Field(min_length=2)]
    children: list[Tree] = []
    word: Literal["yes", "no"]
    table: dict[str, int]


@pytest.mark.parametrize("kind", [Leaf, Tree, list[Leaf], Kind, int, bool, Annotated[list[Tree], Field(min_length=1)]])
def test_of_pydantics_types(kind: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    adapter.validate_json(adapter.dump_json(adapter.validate_python(least_instance(adapter.json_schema()))))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"const": 5},
        {"type": "null"},
        {"type": ["string", "null"], "minLength": 4},
        {"enum": [None, 1]},
        {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {
            "allOf": [
                {"properties": {"a": {"const": 1}}, "required": ["a"]},
                {"properties": {"b": {}}, "required": ["b"]},
            ]
        },
        {"oneOf": [{"type": "integer", "minimum": 3}, {"type": "string"}]},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "items": {"const": 2}, "minItems": 3}}},
        {"anyOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"const": 2}}},
        {"type": "number", "exclusiveMaximum": 0},
    ],
)
def test_of_schemas_as_people_write_them(schema: dict[str, Any]) -> None:
    Draft202012Validator(schema).validate(least_instance(schema))


def test_one_that_refers_to_itself_for_ever_ends() -> None:
    schema = {"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"x": {"$ref": "#/$defs/x"}}, "required": ["x"]}}}
    assert isinstance(least_instance(schema), dict)
