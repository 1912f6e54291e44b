"""What a DAG wants its results written as, besides JSON lines.

Owns the words. How results are written is `storage`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.storage.sink_openai import OpenAISink
from airflow_llm_provider.storage.sink_parquet import COLUMNS, ParquetSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_llm_provider.storage.sink import Sink
    from airflow_llm_provider.storage.sink_parquet import Compression

_COMPRESSIONS = ("zstd", "snappy", "gzip", "none")


class Parquet:
    """Parquet files, one for each part, all of one schema: see `docs/sinks.md`.

    Args:
        columns: fields of the input's rows that stand beside the results, as texts.
        compression: ``zstd``, ``snappy``, ``gzip`` or ``none``.

    Raises:
        ConfigurationError: a word can't be meant.
    """

    def __init__(self, *, columns: Sequence[str] = (), compression: Compression = "zstd") -> None:
        if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
            raise ConfigurationError(f"sinks: columns must be a list of names, not {columns!r}")
        if twice := sorted(set(columns) & set(COLUMNS)):
            raise ConfigurationError(
                f"sinks: {', '.join(twice)} is a column of the results. Name the input's field otherwise in its source"
            )
        if compression not in _COMPRESSIONS:
            raise ConfigurationError(f"sinks: compression is one of {', '.join(_COMPRESSIONS)}, not {compression!r}")
        self.columns = tuple(dict.fromkeys(columns))
        self.compression: Compression = compression

    def __repr__(self) -> str:
        """The same for the same words: a DAG's version is told by it."""
        return f"Parquet(columns={list(self.columns)!r}, compression={self.compression!r})"

    def open(self) -> Sink:
        """What writes them; raises ConfigurationError where pyarrow is not installed."""
        return ParquetSink(columns=self.columns, compression=self.compression)


class OpenAIBatch:
    """The output and error files of OpenAI's Batch API: see `docs/sinks.md`."""

    def __repr__(self) -> str:
        """The same for each."""
        return "OpenAIBatch()"

    def open(self) -> Sink:
        """What writes them."""
        return OpenAISink()


def check_columns(sinks: Sequence[Parquet | OpenAIBatch], source: Any) -> None:
    """Whether rows have the fields that sinks show, as far as the DAG says which they have.

    Raises:
        ConfigurationError: they have not.
    """
    taken = getattr(source, "columns", None)
    if taken is None:
        return
    for sink in sinks:
        if isinstance(sink, Parquet) and (missing := [name for name in sink.columns if name not in taken]):
            label = getattr(source, "custom_id", None)
            hint = f" ({label} is the rows' label: the column custom_id has it)" if label in missing else ""
            raise ConfigurationError(
                f"sinks: Parquet shows {', '.join(missing)}, which is not among the columns that the source takes: "
                f"{', '.join(taken)}{hint}"
            )


def sinks_of(sinks: Any) -> tuple[Parquet | OpenAIBatch, ...]:
    """What an operator's ``sinks`` names.

    Raises:
        ConfigurationError: when it is none, or one of a kind too many.
    """
    if sinks is None:
        return ()
    words = tuple(sinks) if isinstance(sinks, list | tuple) else (sinks,)
    for each in words:
        if not isinstance(each, Parquet | OpenAIBatch):
            raise ConfigurationError(f"sinks: {each!r} is none; give sinks.Parquet(), sinks.OpenAIBatch(), or both")
    if len({type(each) for each in words}) != len(words):
        raise ConfigurationError("sinks: one of each kind at most")
    return words
