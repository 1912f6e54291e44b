"""The least instance of a JSON schema, for a stub that is asked for one.

Owns which one that is. Pure. Knows the keywords that schemas of pydantic's models have, and no others: what a
``pattern`` or a ``not`` asks for is not found out.
"""

from __future__ import annotations

from typing import Any

_TEXTS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "someone@example.com",
    "uri": "https://example.com/",
}
_DEEPEST = 32


def least_instance(schema: Any) -> Any:
    """An instance of `schema`, as short as may be; of one that refers to itself for ever, None at its deepest."""
    return _instance(schema, schema, 0)


def _instance(schema: Any, root: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "$ref" in schema:
        return _instance({**_found(schema["$ref"], root), **_without(schema, "$ref")}, root, depth + 1)
    if "allOf" in schema:
        merged = _without(schema, "allOf")
        for each in schema["allOf"]:
            merged = _merged(merged, _resolved(each, root))
        return _instance(merged, root, depth + 1)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf"):
        if schema.get(name):
            return _instance(_merged(_without(schema, name), _resolved(schema[name][0], root)), root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: dict[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            names = schema.get("required", [])
            return {name: _instance(properties.get(name, {}), root, depth + 1) for name in names}
        case "array":
            first = schema.get("prefixItems", [])
            items = [_instance(each, root, depth + 1) for each in first]
            more = max(0, schema.get("minItems", 0) - len(items))
            its = [_instance(schema.get("items", {}), root, depth + 1) for _ in range(more)]
            if schema.get("uniqueItems"):
                its = [f"{each}{number}" if isinstance(each, str) else each for number, each in enumerate(its)]
            return [*items, *its]
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return _TEXTS.get(schema.get("format", ""), "x" * max(1, schema.get("minLength", 1)))


def _number(schema: dict[str, Any]) -> Any:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if schema.get("type") == "number" and "multipleOf" not in schema and low is not None and high is not None:
        return (low + high) / 2
    step = schema.get("multipleOf", 1)
    for name, beyond in (("minimum", 0), ("exclusiveMinimum", step)):
        if name in schema:
            return -(-(schema[name] + beyond) // step) * step
    for name, beyond in (("maximum", 0), ("exclusiveMaximum", step)):
        if name in schema:
            return min(0, (schema[name] - beyond) // step * step)
    return 0


def _found(reference: str, root: Any) -> dict[str, Any]:
    place = root
    for name in reference.lstrip("#/").split("/"):
        place = place.get(name, {}) if isinstance(place, dict) and name else place
    return place if isinstance(place, dict) else {}


def _resolved(schema: Any, root: Any) -> dict[str, Any]:
    found = {**_found(schema["$ref"], root), **_without(schema, "$ref")} if "$ref" in schema else schema
    return found if isinstance(found, dict) else {}


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    properties = {**one.get("properties", {}), **other.get("properties", {})}
    required = [*one.get("required", []), *other.get("required", [])]
    both = {**one, **other}
    return {**both, "properties": properties, "required": required} if properties else both


def _without(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != name}
