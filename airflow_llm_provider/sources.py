"""What a DAG says of its input, where a path alone does not say enough.

Owns the words. How files are read is `storage`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.storage.file_source import Selection
from airflow_llm_provider.storage.formats import check_words, source_for

if TYPE_CHECKING:
    from airflow_llm_provider.storage.file_source import FileSource
    from airflow_llm_provider.storage.formats import Format


class Files:
    """Files as an operator's ``source``, with what is taken of them.

    ::

        LLMBatchOperator(
            source=Files("s3://lake@tickets/{{ ds }}/*.parquet", columns=["body"], custom_id="ticket", limit=100), ...
        )

    Raises:
        ConfigurationError: for a format, delimiter or limit that can't be meant.

    Args:
        paths: paths or globs, on any storage that Airflow knows. Templated.
        format: ``jsonl``, ``csv``, ``parquet`` or ``documents``; None: as the files' names tell.
        columns: fields that rows have; None: all. Templated.
        custom_id: the field that is a row's label; None: ``custom_id``. Templated.
        limit: the first so many rows alone, for a trial; None: all.
        delimiter: of CSV; None: a tab in ``.tsv``, a comma in all others.
    """

    template_fields = ("paths", "columns", "custom_id")

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        format: Format | None = None,  # noqa: A002 - the field's word
        columns: Sequence[str] | None = None,
        custom_id: str | None = None,
        limit: int | None = None,
        delimiter: str | None = None,
    ) -> None:
        self.paths = paths
        self.format = format
        self.columns = columns
        self.custom_id = custom_id
        self.limit = limit
        self.delimiter = delimiter
        check_words(format=format, delimiter=delimiter)
        Selection(limit=limit)

    def __repr__(self) -> str:
        """The same for the same words: a DAG's version is told by it."""
        words = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"Files({words})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment] # it is changed when its templates are rendered

    def open(self) -> FileSource:
        """What reads them.

        Raises:
            ConfigurationError: the words make no sense together.
            ConnectionMissingError: a path names a connection that Airflow does not know.
        """
        paths: Any = self.paths
        if isinstance(paths, str) or hasattr(paths, "__fspath__"):
            paths = [str(paths)]
        patterns = list(paths) if isinstance(paths, Sequence) else []
        if not patterns or not all(isinstance(each, str) and each.strip() for each in patterns):
            raise ConfigurationError(f"source: {self!r} names no files")
        if self.columns is not None and isinstance(self.columns, str):
            raise ConfigurationError(f"source: columns must be a list of names, not {self.columns!r}")
        selection = Selection(
            columns=None if self.columns is None else tuple(self.columns),
            custom_id=self.custom_id or None,  # a template may render to nothing
            limit=self.limit,
        )
        return source_for(patterns, selection, format=self.format, delimiter=self.delimiter)
