"""What is told to a running server over HTTP: ``PUT /_faults``, ``DELETE /_faults`` and ``PATCH /_state``.

Owns how it is read, and that all of it is valid before any of it holds. Does not know which faults there are
(`simulator.fault`), what a server's state is, nor what follows from it.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

from airflow_llm_provider.simulator import bodies
from airflow_llm_provider.simulator.acting import json
from airflow_llm_provider.simulator.fault import first_of, rules_of_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import web

    from airflow_llm_provider.simulator.fault import FaultFunction


class Faulty(Protocol):
    """Something that goes wrong on demand."""

    fault: FaultFunction | None


class Form(NamedTuple):
    """What a field of a server's state may hold.

    Attributes:
        told: it, for people.
        fits: whether a value out of JSON is such a one.
    """

    told: str
    fits: Callable[[Any], bool]


TEXT = Form("text", lambda value: isinstance(value, str))
NAMES = Form(
    "a list of one name or more",
    lambda value: (
        isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(name, str) and name for name in value)
    ),
)
FLAG = Form("true or false", lambda value: isinstance(value, bool))
SECONDS = Form(
    "a finite number of 0 or more",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0,
)


def set_faults(server: Faulty, raw: bytes) -> web.Response:
    """The answer to ``/_faults``: how many rules hold from now on.

    Args:
        server: whose faults they are.
        raw: the body; empty, there are none.
    """
    try:
        rules = rules_of_json(raw)
    except ValueError as error:
        return json(bodies.bad_request(str(error)), 400)
    server.fault = first_of(rules) if rules else None
    return json({"rules": len(rules)})


def set_state(state: object, raw: bytes, forms: Mapping[str, Form]) -> web.Response:
    """The answer to ``PATCH /_state``: what was changed.

    Args:
        state: gets the values as its attributes.
        raw: the body.
        forms: of the attributes that may be set.
    """
    try:
        changes = _changes(raw, forms)
    except ValueError as error:
        return json(bodies.bad_request(str(error)), 400)
    for name, value in changes.items():
        setattr(state, name, tuple(value) if isinstance(value, list) else value)
    return json(changes)


def _changes(raw: bytes, forms: Mapping[str, Form]) -> dict[str, Any]:
    changes = orjson.loads(raw)
    if not isinstance(changes, dict):
        raise ValueError(f'The state is set with an object, such as {{"draining": true}}, not with {changes!r}.')  # noqa: TRY004 - it is JSON
    if unknown := sorted(changes.keys() - forms.keys()):
        raise ValueError(f"The state has no field {', '.join(unknown)} that could be set. It has {', '.join(forms)}.")
    check(changes, forms)
    return changes


def check(values: Mapping[str, Any], forms: Mapping[str, Form]) -> None:
    """Whether each value is one that its field may hold.

    Args:
        values: by the field's name.
        forms: of all fields.

    Raises:
        ValueError: one is not.
    """
    for name, value in values.items():
        if not forms[name].fits(value):
            raise ValueError(f"{name} is {forms[name].told}, not {value!r}.")
