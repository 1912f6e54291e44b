"""A run's rows as Parquet: one file for each part, all of one schema.

Owns the schema: the same columns and types whatever the answers were. `parsed` has the type that a JSON schema tells,
where it tells one, and is JSON text otherwise; so are columns of the input that are no texts.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from typing import TYPE_CHECKING, Any, Literal

import orjson

from airflow_llm_provider.core.identity import canonical
from airflow_llm_provider.core.prompt import PATHS
from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.file_source import fields_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_llm_provider.storage.sink import FinishedRows

log = logging.getLogger(__name__)

Compression = Literal["zstd", "snappy", "gzip", "none"]

COLUMNS = (
    "index", "custom_id", "status", "output", "parsed", "reasoning", "tool_calls", "choices", "finish_reason",
    "prompt_tokens", "completion_tokens", "cached_tokens", "error_kind", "error_message", "http_status", "attempts",
)  # fmt: skip
"""Besides those of the input."""

_NUMBERS = {"index": "int64", "http_status": "int32", "attempts": "int32"}
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens")
_UNFIT = (ValueError, TypeError, OverflowError)
"""What pyarrow raises of a value that does not fit its column; its own errors are of these."""

_DEEPEST = 8
_CLOSED = "closed objects"


class ParquetSink:
    """``results-00000-<fingerprint>.parquet``, and one for each further part.

    Args:
        columns: fields of the input's rows that stand beside the results, as texts.
        compression: of the files.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """

    name = "parquet"

    def __init__(self, *, columns: Sequence[str] = (), compression: Compression = "zstd") -> None:
        try:
            import pyarrow.parquet  # noqa: F401, PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError(
                "sinks: Parquet needs pyarrow. Install airflow-llm-provider[files] on the workers"
            ) from error
        self._columns = tuple(columns)
        self._compression = compression

    def spec(self) -> dict[str, Any]:
        """See `Sink.spec`."""
        return {"columns": list(self._columns), "compression": self._compression}

    def write(self, run: FinishedRows) -> dict[str, Any]:
        """See `Sink.write`; a run without rows has one file without rows."""
        kind = _kind(run)
        schema = _schema(self._columns, kind)
        fingerprint, words = run.document.fingerprint, hashlib.sha256(canonical(self.spec())).hexdigest()[:6]
        empty, missing = True, set(self._columns)
        for chunk, rows in run.chunks():
            empty = False
            inputs = [fields_of(row.raw) for row in run.inputs(chunk)] if self._columns else [{}] * len(rows)
            missing = {name for name in missing if not any(name in fields for fields in inputs)}
            records = [self._record(row, fields) for row, fields in zip(rows, inputs, strict=True)]
            if kind is None:
                records = [{**record, "parsed": _json(record["parsed"])} for record in records]
            run.store.write(layout.parquet(chunk.number, fingerprint, words), self._encoded(records, schema))
        if empty:
            run.store.write(layout.parquet(0, fingerprint, words), self._encoded([], schema))
        elif missing:
            log.warning(
                "No row of the input has a field %s: in Parquet that column is null", ", ".join(sorted(missing))
            )
        return {"files": f"{run.store.uri}/{layout.parquet('*', fingerprint, words)}"}

    def _record(self, row: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        usage, error = row["usage"], row["error"] or {}
        return {
            **{name: _text(fields.get(name)) for name in self._columns},
            **{name: row[name] for name in ("index", "custom_id", "status", "output", "reasoning", "finish_reason")},
            **{name: _text(row[name]) for name in ("tool_calls", "choices")},
            "parsed": row.get("parsed"),
            **{name: usage[name] for name in _TOKENS},
            "error_kind": error.get("kind"),
            "error_message": error.get("message"),
            "http_status": error.get("http_status"),
            "attempts": row["attempts"],
        }

    def _encoded(self, records: list[dict[str, Any]], schema: Any) -> bytes:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.parquet as pq  # noqa: PLC0415

        try:
            table = pa.Table.from_pylist(records, schema=schema)
        except _UNFIT:
            table = pa.Table.from_pylist([_fit(record, schema) for record in records], schema=schema)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression=self._compression)
        return buffer.getvalue()


def _kind(run: FinishedRows) -> Any:
    """The type of `parsed`; None where it is none that is certain."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    if run.schema is not None:
        return arrow_type(run.schema.landed, closed=run.schema.typed)
    if run.url == PATHS["score"]:
        return pa.float64()
    if run.url == PATHS["classify"]:
        return pa.struct([("label", pa.string()), ("probs", pa.list_(pa.float64()))])
    if run.url != PATHS["embeddings"]:
        return None
    vectors = (row["parsed"] for _, rows in run.chunks() for row in rows if row["parsed"])
    return pa.list_(pa.float32(), len(next(vectors, [0.0])))  # all of a model's have one length


def _fit(record: dict[str, Any], schema: Any) -> dict[str, Any]:
    """The record, without its value where that does not fit: an integer of 64 bits and more, say."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    try:
        pa.Table.from_pylist([record], schema=schema)
    except _UNFIT as error:  # its words quote the value, which may not be for logs
        kind = type(error).__name__
        log.warning("Row %d: parsed is null in Parquet (%s), and stands in its part", record["index"], kind)
        return {**record, "parsed": None}
    return record


def _schema(columns: Sequence[str], kind: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    types = {name: pa.string() for name in (*columns, *COLUMNS)}
    types |= {name: pa.type_for_alias(alias) for name, alias in _NUMBERS.items()}
    types |= {name: pa.int64() for name in _TOKENS}
    types["parsed"] = kind or pa.string()
    return pa.schema(list(types.items()))


def arrow_type(schema: dict[str, Any], *, closed: bool) -> Any:
    """The Arrow type of a JSON schema's instances; None where it tells none that is certain.

    Args:
        schema: the schema.
        closed: objects have no other properties than it names, though it does not say so.
    """
    return _type(schema, {**schema, _CLOSED: closed}, 0)


def _type(schema: Any, root: dict[str, Any], depth: int) -> Any:
    """None: nothing that is certain, and so is what it is in, since values within are not made into texts."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    schema = _plain(schema, root)
    if schema is None or depth > _DEEPEST:
        return None
    match schema.get("type"):
        case "object":
            properties = schema.get("properties")
            open_ended = schema.get("additionalProperties", not root[_CLOSED]) is not False
            if not properties or open_ended or "patternProperties" in schema:
                return None  # an instance may have more, which would be lost
            # What pydantic computes is not what was answered, and does not land.
            landed = {name: each for name, each in properties.items() if each is True or not each.get("readOnly")}
            types = {name: _type(each, root, depth + 1) for name, each in landed.items()}
            return None if None in types.values() else pa.struct(list(types.items()))
        case "array":
            item = _type(schema.get("items"), root, depth + 1) if "prefixItems" not in schema else None
            return None if item is None else pa.list_(item)
        case "string":
            return pa.string()
        case "integer":
            return pa.int64()
        case "number":
            return pa.float64()
        case "boolean":
            return pa.bool_()
        case _:
            words = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
            return pa.string() if words and all(isinstance(word, str) for word in words) else None


def _plain(schema: Any, root: dict[str, Any]) -> dict[str, Any] | None:
    """What a reference, or a choice between something and null, comes to."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, dict):
            return None
        if isinstance(schema.get("$ref"), str):
            place: Any = root
            for name in schema["$ref"].removeprefix("#/").split("/"):
                place = place.get(name) if isinstance(place, dict) else None
            schema = place
        elif "anyOf" in schema:
            some = [each for each in schema["anyOf"] if each != {"type": "null"}]
            if len(some) != 1:
                return None
            (schema,) = some
        elif isinstance(schema.get("type"), list):
            kinds = [kind for kind in schema["type"] if kind != "null"]
            if len(kinds) != 1:
                return None
            schema = {**schema, "type": kinds[0]}
        else:
            return schema
    return None


def _text(value: Any) -> str | None:
    """As it is, where it is a text that can be written; else as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # half a surrogate pair, a number of more than 64 bits: the row is a dead letter
        return json.dumps(value, default=str)


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
