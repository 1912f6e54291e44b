"""Which format an input's files have, by their names or by what the DAG says.

Owns the table of names. Does not know how a format is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.storage.csv_rows import CsvSource
from airflow_llm_provider.storage.documents import DocumentSource
from airflow_llm_provider.storage.found_files import ending
from airflow_llm_provider.storage.jsonl import JsonlSource
from airflow_llm_provider.storage.parquet import ParquetSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_llm_provider.storage.file_source import FileSource, Selection

Format: TypeAlias = Literal["jsonl", "csv", "parquet", "documents"]

_BY_ENDING: dict[str, Format] = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
    "pq": "parquet",
    "txt": "documents",
    "md": "documents",
    "pdf": "documents",
}


def format_of(patterns: Sequence[str]) -> Format:
    """The one format that the names tell; JSONL where they tell none.

    Raises:
        ConfigurationError: they tell of several.
    """
    told = {_BY_ENDING.get(ending(pattern), "jsonl") for pattern in patterns}
    if len(told) > 1:
        raise ConfigurationError(
            f"source: {', '.join(patterns)} are files of several formats ({', '.join(sorted(told))}); a run has one. "
            "Name one kind, or say which it is with sources.Files(…, format=…)"
        )
    return told.pop()


def check_words(*, format: Format | None, delimiter: str | None) -> None:  # noqa: A002 - the field's word
    """Whether they can be meant, whatever the files are.

    Raises:
        ConfigurationError: they can't.
    """
    if format is not None and format not in get_args(Format):
        raise ConfigurationError(f"source: format is one of {', '.join(get_args(Format))}, not {format!r}")
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ConfigurationError(f"source: delimiter must be one character, such as ';', not {delimiter!r}")


def source_for(
    patterns: Sequence[str],
    selection: Selection | None = None,
    *,
    format: Format | None = None,  # noqa: A002 - the field's word
    delimiter: str | None = None,
) -> FileSource:
    """The source that reads `patterns`.

    Args:
        patterns: paths or globs.
        selection: what is taken of them.
        format: None: as their names tell.
        delimiter: of CSV.

    Raises:
        ConfigurationError: there is no such format, or it has no delimiter, or no columns.
    """
    check_words(format=format, delimiter=delimiter)
    found = format_of(patterns) if format is None else format
    if delimiter is not None and found != "csv":
        raise ConfigurationError(f"source: {found} has no delimiter; leave it out, or say format='csv'")
    match found:
        case "csv":
            return CsvSource(patterns, selection, delimiter=delimiter)
        case "parquet":
            return ParquetSource(patterns, selection)
        case "documents":
            return DocumentSource(patterns, selection)
        case "jsonl":
            return JsonlSource(patterns, selection)
