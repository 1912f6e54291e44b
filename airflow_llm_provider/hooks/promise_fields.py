"""The connection's fields that say what the platform team promised real-time, read into a `Promise`.

Owns these fields and what the error for a bad value says. Does not know what a promise leads to (`core.terms`), nor the
fields that say where latency is read (`hooks.latency_fields`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow_llm_provider.core.objective import format_objectives
from airflow_llm_provider.core.terms import Promise
from airflow_llm_provider.core.window_text import EXAMPLE, parse_windows
from airflow_llm_provider.core.workload import Placement, placement_of
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks.values import kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_llm_provider.core.window import Windows
    from airflow_llm_provider.endpoint.settings import LatencySettings

PROMISE_KEYS: Final = (
    "placement",
    "window",
    "max_in_flight",
    "headroom",
    "priority",
    "early_for_deadline",
    "hold",
)

_SWITCHED_OFF = ("", "false", "off", "no", "0")
_SWITCHED_ON = ("true", "on", "yes", "1")


def read_promise(
    extra: Mapping[str, Any],
    *,
    servers: int,
    slots: int | None,
    latency: LatencySettings | None,
    bad: Callable[[str, str, str], ConfigurationError],
) -> Promise:
    """The promise that `extra` holds.

    Raises:
        ConfigurationError: made by `bad`, for a value that cannot be meant.
    """
    known: dict[str, Any] = {}
    if latency is not None:
        known = {
            "objective": format_objectives(latency.objectives),
            "on_unknown": latency.on_unknown,
            "unknown_limit": latency.unknown_limit,
            "sampling_period_s": latency.sampling_period_s,
        }
    return Promise(
        placement=_placement(extra.get("placement"), bad),
        windows=_windows(extra.get("window"), bad),
        servers=servers,
        slots=slots,
        max_in_flight=_whole("max_in_flight", extra.get("max_in_flight"), bad, least=1),
        headroom=_whole("headroom", extra.get("headroom"), bad, least=0),
        priority=_whole("priority", extra.get("priority"), bad, least=None),
        early_for_deadline=_switch("early_for_deadline", extra.get("early_for_deadline"), bad) is not None,
        hold=_switch("hold", extra.get("hold"), bad),
        **known,
    )


def _placement(value: Any, bad: Callable[[str, str, str], ConfigurationError]) -> Placement | None:
    if value is None:
        return None
    try:
        return placement_of(str(value).strip())
    except ConfigurationError:
        raise bad("extra.placement", repr(value), f"write one of {', '.join(Placement)}") from None


def _windows(value: Any, bad: Callable[[str, str, str], ConfigurationError]) -> Windows | None:
    if value is None:
        return None
    try:
        return parse_windows(str(value))
    except ConfigurationError as error:
        raise bad("extra.window", repr(value), f"{error}. Write it like {EXAMPLE}") from None


def _whole(
    field: str, value: Any, bad: Callable[[str, str, str], ConfigurationError], *, least: int | None
) -> int | None:
    if value is None:
        return None
    try:
        number = None if isinstance(value, bool | float) else int(value)
    except (TypeError, ValueError):
        number = None
    if number is None or (least is not None and number < least):
        advice = "write a whole number" if least is None else f"write a whole number of {least} or more"
        raise bad(f"extra.{field}", repr(value), advice)
    return number


def _switch(field: str, value: Any, bad: Callable[[str, str, str], ConfigurationError]) -> str | None:
    """None where it is off; where it is on, the reason that is written there, or that none is."""
    if value is None or value is False:
        return None
    if value is True:
        return "no reason is given"
    if not isinstance(value, str):
        raise bad(f"extra.{field}", kind(value), "write true, false, or the reason as text")
    word = value.strip()
    if word.lower() in _SWITCHED_OFF:
        return None
    return "no reason is given" if word.lower() in _SWITCHED_ON else word
