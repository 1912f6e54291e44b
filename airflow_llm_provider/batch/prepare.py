"""From a row as the source has it to a request, or to a bad row that says why not.

Owns parsing and labelling. Pure but for CPU: it runs in the feeder's thread. Does not know templates' insides
(`core.prompt`) or sources' (`storage`).
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.core.prompt import RowRejectedError
from airflow_llm_provider.core.request import BadRow, RowRequest
from airflow_llm_provider.core.texts import texts_in
from airflow_llm_provider.storage.source import MalformedRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.core.prompt import RequestTemplate
    from airflow_llm_provider.storage.source import SourceRow

_RAW_CHARS = 10_000


class Preparer:
    """Turns source rows into requests.

    Args:
        template: the run's compiled prompts.
        priority: vLLM's, sent with every request; None: not sent. A batch line may ask for a later one of its own.
    """

    def __init__(self, template: RequestTemplate, *, priority: int | None = None) -> None:
        self._template = template
        self._priority = priority

    def prepare(self, row: SourceRow) -> RowRequest | BadRow:
        """The request `row` becomes; never raises for the row's sake."""
        label = f"row-{row.index}"
        if isinstance(row.raw, MalformedRow):
            message = f"{row.position}: {row.raw.message}"
            return BadRow(row.index, label, row.position, message, row.raw.text[:_RAW_CHARS])
        try:
            fields = _parse(row.raw)
            label = _label(fields, label)
            path, body = self._template.build(fields)
            body = self._prioritised(_streaming(body))
            return RowRequest(row.index, label, path, orjson.dumps(body), row.position, _sequences(path, body))
        except (RowRejectedError, TypeError) as error:  # TypeError: a value that JSON cannot say, or too deeply nested
            message = f"{row.position}: {error}".encode("utf-8", "replace").decode()  # may quote half a surrogate pair
            return BadRow(row.index, label, row.position, message, _raw(row.raw))

    def _prioritised(self, body: dict[str, Any]) -> dict[str, Any]:
        if self._priority is None:
            return body
        own = body.get("priority", self._priority)
        if not isinstance(own, int) or own < self._priority:
            shown = own if isinstance(own, int) else f"a {type(own).__name__}"
            raise RowRejectedError(
                f"its priority is {shown}; the run's is {self._priority}, and lower ones run earlier"
            )
        return {**body, "priority": own}


def _parse(raw: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(raw, bytes):
        return raw
    try:
        fields = orjson.loads(raw.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise RowRejectedError(f"the line is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RowRejectedError(f"the line is a JSON {type(fields).__name__}, not an object")
    return fields


def _label(fields: Mapping[str, Any], otherwise: str) -> str:
    match fields.get("custom_id"):
        case None:
            return otherwise
        case str(label):
            try:
                label.encode()
            except UnicodeEncodeError as error:
                raise RowRejectedError(f"its custom_id cannot be written as UTF-8: {error}") from error
            return label
        case int(number) if not isinstance(number, bool):
            return str(number)
        case other:
            raise RowRejectedError(f"its custom_id is a {type(other).__name__}, not a string")


def _streaming(body: dict[str, Any]) -> dict[str, Any]:
    """A streamed answer tells its usage only where it is asked to."""
    if body.get("stream") is not True or "stream_options" in body:
        return body
    return {**body, "stream_options": {"include_usage": True}}


def _sequences(path: str, body: Mapping[str, Any]) -> int:
    """How many answers `body` asks for; what the server will refuse anyway counts as one."""
    many, n = texts_in(path, body), body.get("n")
    return many * n if isinstance(n, int) and n > 0 else many


def _raw(raw: bytes | Mapping[str, Any]) -> str:
    if isinstance(raw, bytes):
        return raw[: 4 * _RAW_CHARS].decode("utf-8", "replace")[:_RAW_CHARS]
    try:
        return repr(raw)[:_RAW_CHARS]
    except RecursionError:
        return "a row that is nested too deeply to be shown"
