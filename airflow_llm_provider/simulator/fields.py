"""What a real vLLM 0.32 takes for a whole number, a number, a yes or no, or a list; and its refusal of anything else.

Owns the forms that a field may have, as pydantic reads them: ``"5"`` and ``5.0`` are whole numbers, and so is ``true``;
``"false"`` is a no. Pure. Does not know which fields there are, nor what is made of them (`simulator.asked`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow_llm_provider.simulator import bodies

if TYPE_CHECKING:
    from collections.abc import Mapping

_INT64: Final = 1 << 63
_YES_OR_NO: Final = {
    **dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True),
    **dict.fromkeys(("0", "off", "f", "false", "n", "no"), False),
}


class RefusedError(Exception):
    """The request gets an error.

    Args:
        status: of the answer.
        body: of the answer.
    """

    def __init__(self, body: dict[str, Any], status: int = 400) -> None:
        super().__init__(body["error"]["message"])
        self.status = status
        self.body = body


def refused(loc: str, kind: str, message: str, given: object, **context: object) -> RefusedError:
    """The refusal of a value's form.

    Args:
        loc: which field, from the body on.
        kind: pydantic's word for what is wrong with it.
        message: the same for people.
        given: what was there.
        **context: the limits that the value is beyond.
    """
    return RefusedError(bodies.invalid(f"body.{loc}", kind, message, given=given, context=context))


def whole(value: object, loc: str, *, least: int | None = None, most: int | None = None) -> int:
    """A whole number.

    Args:
        value: what the field holds.
        loc: which field.
        least: the smallest that is taken.
        most: the greatest.
    """
    number = _whole(value, loc)
    if least is not None and number < least:
        raise refused(loc, "greater_than_equal", f"Input should be greater than or equal to {least}", value, ge=least)
    if most is not None and number > most:
        raise refused(loc, "less_than_equal", f"Input should be less than or equal to {most}", value, le=most)
    return number


def _whole(value: object, loc: str) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not value.is_integer():
            message = "Input should be a valid integer, got a number with a fractional part"
            raise refused(loc, "int_from_float", message, value)
        if abs(value) >= _INT64:
            message = "Unable to parse input string as an integer, exceeded maximum size"
            raise refused(loc, "int_parsing_size", message, value)
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            raise refused(loc, "int_parsing", message, value) from None
    raise refused(loc, "int_type", "Input should be a valid integer", value)


def int64(value: object, loc: str) -> int:
    """A whole number of 64 bits."""
    return whole(value, loc, least=-_INT64, most=_INT64 - 1)


def number(value: object, loc: str) -> float:
    """A number, which may be infinite, or none at all (NaN)."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            message = "Input should be a valid number, unable to parse string as a number"
            raise refused(loc, "float_parsing", message, value) from None
    if isinstance(value, int | float):
        return float(value)
    raise refused(loc, "float_type", "Input should be a valid number", value)


def truth(value: object, loc: str) -> bool:
    """A yes or a no."""
    if isinstance(value, bool):
        return value
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not is_whole and not isinstance(value, str):
        raise refused(loc, "bool_type", "Input should be a valid boolean", value)
    told = value.lower() if isinstance(value, str) else f"{value:.0f}"
    if told not in _YES_OR_NO:
        raise refused(loc, "bool_parsing", "Input should be a valid boolean, unable to interpret input", value)
    return _YES_OR_NO[told]


def text(value: object, loc: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise refused(loc, "string_type", "Input should be a valid string", value)
    return value


def listed(value: object, loc: str) -> list[Any]:
    """A list of anything."""
    if not isinstance(value, list):
        raise refused(loc, "list_type", "Input should be a valid list", value)
    return value


def ids(value: object, loc: str, *, least: int | None = None) -> list[int]:
    """A list of whole numbers."""
    return [whole(one, f"{loc}.{place}", least=least) for place, one in enumerate(listed(value, loc))]


def flag(fields: Mapping[str, Any], name: str, *, default: bool = False, within: str = "") -> bool:
    """A yes or a no that need not be there, nor hold anything.

    Args:
        fields: of the request.
        name: of the field.
        default: where there is nothing.
        within: the field that `fields` are the value of.
    """
    value = fields.get(name)
    return default if value is None else truth(value, f"{within}.{name}" if within else name)
