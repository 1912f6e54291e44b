"""A run's rows as Parquet: one file for each part, all of one schema.

Owns the schema: the same columns and types whatever the answers were. `parsed` has the type that a JSON schema tells,
where it tells one, and is JSON text otherwise; so are columns of the input that are no texts.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

import orjson

from airflow_llm_provider.exceptions import ConfigurationError, StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.file_source import parsed
from airflow_llm_provider.storage.source import MalformedRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_llm_provider.core.output_schema import OutputSchema
    from airflow_llm_provider.storage.sink import FinishedRows

Compression = Literal["zstd", "snappy", "gzip", "none"]

COLUMNS = (
    "index", "custom_id", "status", "output", "parsed", "reasoning", "tool_calls", "choices", "finish_reason",
    "prompt_tokens", "completion_tokens", "cached_tokens", "error_kind", "error_message", "http_status", "attempts",
)  # fmt: skip
"""Besides those of the input."""

_NUMBERS = {"index": "int64", "http_status": "int32", "attempts": "int32"}
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens")
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

    def write(self, run: FinishedRows) -> str:
        """See `Sink.write`; a run without rows has one file without rows."""
        schema = _schema(self._columns, run.schema)
        fingerprint = run.document.fingerprint
        empty = True
        for chunk, rows in run.chunks():
            empty = False
            inputs = [_fields(row.raw) for row in run.inputs(chunk)] if self._columns else [{}] * len(rows)
            records = [self._record(row, fields) for row, fields in zip(rows, inputs, strict=True)]
            run.store.write(layout.parquet(chunk.number, fingerprint), self._encoded(records, schema, chunk.number))
        if empty:
            run.store.write(layout.parquet(0, fingerprint), self._encoded([], schema, 0))
        return f"{run.store.uri}/results-*-{fingerprint}.parquet"

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

    def _encoded(self, records: list[dict[str, Any]], schema: Any, number: int) -> bytes:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.parquet as pq  # noqa: PLC0415

        if pa.types.is_string(schema.field("parsed").type):
            records = [{**record, "parsed": _json(record["parsed"])} for record in records]
        try:
            table = pa.Table.from_pylist(records, schema=schema)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise StorageError(f"The rows of chunk {number} do not fit the Parquet schema: {error}") from error
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression=self._compression)
        return buffer.getvalue()


def _schema(columns: Sequence[str], output_schema: OutputSchema | None) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    types = {name: pa.string() for name in (*columns, *COLUMNS)}
    types |= {name: pa.type_for_alias(alias) for name, alias in _NUMBERS.items()}
    types |= {name: pa.int64() for name in _TOKENS}
    types["parsed"] = pa.string()
    if output_schema is not None:
        types["parsed"] = arrow_type(output_schema.schema, closed=output_schema.typed)
    return pa.schema(list(types.items()))


def arrow_type(schema: dict[str, Any], *, closed: bool) -> Any:
    """The Arrow type of a JSON schema's instances; text, which holds JSON then, where it tells none that is certain.

    Args:
        schema: the schema.
        closed: objects have no other properties than it names, though it does not say so.
    """
    import pyarrow as pa  # noqa: PLC0415 - an extra

    return _type(schema, {**schema, _CLOSED: closed}, 0) or pa.string()


def _type(schema: Any, root: dict[str, Any], depth: int) -> Any:
    """None: nothing that is certain, and so is what it is in, since values within are not made into texts."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    schema = _plain(schema, root)
    if schema is None or depth > _DEEPEST:
        return None
    match schema.get("type"):
        case "object":
            properties = schema.get("properties")
            if not properties or schema.get("additionalProperties", not root[_CLOSED]) is not False:
                return None  # an instance may have more, which would be lost
            types = {name: _type(each, root, depth + 1) for name, each in properties.items()}
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


def _fields(raw: Any) -> Mapping[str, Any]:
    """A row's fields; none where it could not be read."""
    return {} if isinstance(raw, MalformedRow) else parsed(raw) or {}


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
