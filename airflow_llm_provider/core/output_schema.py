"""What an answer must be where it is data: JSON of a schema.

Owns reading a schema or a type, what a server is sent of it, and whether a text is an instance. Pure. Does not know
what becomes of an answer that is none (`core.answers`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson
from jsonschema.exceptions import SchemaError as NoSchemaError
from jsonschema.validators import Draft202012Validator, validator_for
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import SchemaError
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ERRORS = 5
"""So many of what is wrong with an answer are told, to the model and to people."""

_ERROR_CHARS = 300
_NAME_CHARS = 64
_FENCE = "```"
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Parsed:
    """An instance of the schema, in JSON values."""

    value: Any


@dataclass(frozen=True, slots=True)
class NotValid:
    """No instance; `message` says why, for the model and for people."""

    message: str


class OutputSchema:
    """See the module.

    Args:
        wanted: a JSON schema, or a type that pydantic knows how to validate: a model, a dataclass, ``list[Model]`` ….

    Attributes:
        schema: the JSON schema.
        landed: of what lands, which a type may write otherwise than it reads it.
        name: what it is called where a server wants a name.
        typed: it is a type's, whose instances have what it names and nothing else, unless it says so.

    Raises:
        ConfigurationError: it is neither.
    """

    def __init__(self, wanted: Any) -> None:
        self.typed = not isinstance(wanted, Mapping)
        if isinstance(wanted, Mapping):
            self.schema, self._check = _of_schema(wanted)
            self.landed = self.schema
            name = self.schema.get("title")
        else:
            self.schema, self.landed, self._check = _of_type(wanted)
            name = getattr(wanted, "__name__", None)
        self.name = _NOT_IN_NAMES.sub("_", name)[:_NAME_CHARS] if isinstance(name, str) and name else "output"

    @property
    def response_format(self) -> dict[str, Any]:
        """The body field by which a server constrains its answers to the schema."""
        named = {"name": self.name, "schema": self.schema, "strict": True}
        return {"type": "json_schema", "json_schema": named}

    def parse(self, text: str | None) -> Parsed | NotValid:
        """The instance that `text` is; a fence of Markdown around it is no harm."""
        if text is None or not text.strip():
            return NotValid("The answer has no text")
        found = self._check(_unfenced(text.strip()))
        if isinstance(found, Parsed) and not _can_be_written(found.value):
            return NotValid("The JSON is nested too deeply, or has a number of more than 64 bits")
        return found


def _of_type(wanted: Any) -> tuple[dict[str, Any], dict[str, Any], Callable[[str], Parsed | NotValid]]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(wanted)
        schema, landed = adapter.json_schema(), adapter.json_schema(mode="serialization")
    except (PydanticSchemaGenerationError, PydanticUserError, SchemaError, TypeError) as error:
        raise ConfigurationError(
            "output_schema must be a JSON schema, as a dict, or a type that pydantic can validate, such as a model: "
            f"{_short(error)}"
        ) from error

    def check(text: str) -> Parsed | NotValid:
        try:
            orjson.loads(text)  # pydantic's own parser takes NaN and what is longer than it seems
            value = adapter.dump_python(adapter.validate_json(text), mode="json", by_alias=True, round_trip=True)
            adapter.validate_json(orjson.dumps(value))  # as whoever reads it will
            return Parsed(value)
        except orjson.JSONDecodeError as error:
            return _no_json(error)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            return _told((".".join(map(str, each["loc"])) or "the answer", each["msg"]) for each in found)
        except Exception as error:  # noqa: BLE001 - a model's own validators may raise anything
            return NotValid(f"It could not be checked: {_short(error)}")

    try:
        return orjson.loads(orjson.dumps(schema)), landed, check
    except TypeError as error:
        raise ConfigurationError(f"output_schema holds what JSON cannot say: {error}") from error


def _of_schema(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[str], Parsed | NotValid]]:
    try:
        schema = json.loads(json.dumps(wanted))  # in the order of the properties, which is that of the answers
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"output_schema holds what JSON cannot say: {error}") from error
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except NoSchemaError as error:
        raise ConfigurationError(
            f"output_schema is no JSON schema: at {error.json_path}, {_short(error.message)}. Give the schema itself, "
            "and no response_format around it"
        ) from error
    _check_references(schema)
    validator = kind(schema, registry=Registry())  # with none of its own it would fetch what a reference names

    def check(text: str) -> Parsed | NotValid:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return _no_json(error)
        try:
            told = [(each.json_path, each.message) for each in islice(validator.iter_errors(value), MOST_ERRORS + 1)]
        except Exception as error:  # noqa: BLE001 - of what only an answer shows: too deep, a dynamic reference
            return NotValid(f"It could not be checked: {type(error).__name__}: {_short(error)}")
        return _told(told) if told else Parsed(value)

    return schema, check


def _check_references(schema: Mapping[str, Any]) -> None:
    """Whether every reference leads somewhere within the schema; otherwise each answer would fail by it."""
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().with_resource(uri="", resource=resource).resolver()
    for reference in _references(schema):
        try:
            if not reference.startswith("#"):
                raise ConfigurationError(f"output_schema refers to {_short(reference)}: only #/… is followed")
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ConfigurationError(f"output_schema refers to {_short(reference)}, which is not in it") from error


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (value[name] for name in ("$ref", "$dynamicRef") if isinstance(value.get(name), str))
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _references(each)


def _told(errors: Any) -> NotValid:
    found = [f"{_short(where)}: {_short(what)}" for where, what in islice(errors, MOST_ERRORS + 1)]
    more = ["…"] if len(found) > MOST_ERRORS else []
    return NotValid("; ".join([*found[:MOST_ERRORS], *more]))


def _unfenced(text: str) -> str:
    """What stands within a fence of Markdown, where all of it does."""
    if not (text.startswith(_FENCE) and text.endswith(_FENCE)):
        return text
    first_line, _, rest = text.partition("\n")
    word = first_line.removeprefix(_FENCE).strip()
    return rest.removesuffix(_FENCE) if rest and (not word or word.isalnum()) else text


def _no_json(error: orjson.JSONDecodeError) -> NotValid:
    return NotValid(f"The answer is no JSON: {_short(error)}")


def _can_be_written(value: Any) -> bool:
    """Whether it can stand in a part's line; see `endpoint.wire`, which asks the same of what comes from a server."""
    try:
        orjson.dumps([[value]])
    except TypeError:
        return False
    return True


def _short(what: object) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= _ERROR_CHARS else f"{text[:_ERROR_CHARS]}…"
