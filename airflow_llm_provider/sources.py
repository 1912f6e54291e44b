"""What a DAG says of its input, where a path alone does not say enough.

Owns the words, and which source each of them opens. How files are read, and rows kept that can be had once only, is
`storage`'s.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

from airflow.sdk import Asset, ObjectStoragePath, XComArg

from airflow_llm_provider.core.identity import canonical
from airflow_llm_provider.exceptions import ConfigurationError, SourceError
from airflow_llm_provider.hooks.compat import ResolveMixin
from airflow_llm_provider.hooks.query import stream
from airflow_llm_provider.storage.file_source import Selection
from airflow_llm_provider.storage.formats import check_words, source_for
from airflow_llm_provider.storage.plain_values import plain
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.spool import SpooledSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk import Context

    from airflow_llm_provider.core.chunks import Chunk
    from airflow_llm_provider.storage.file_source import FileSource
    from airflow_llm_provider.storage.formats import Format
    from airflow_llm_provider.storage.source import Scan, Source, SourceRow
    from airflow_llm_provider.storage.store import RunStore


class Words(ResolveMixin, ABC):
    """What a DAG says of an input: values, some of them templated, some perhaps other tasks' outputs."""

    template_fields: Sequence[str] = ()

    def iter_references(self) -> Iterable[tuple[Any, str]]:
        """Airflow asks it what the words come from."""
        for name in self.template_fields:
            yield from XComArg.iter_xcom_references(getattr(self, name))

    def resolve(self, context: Context) -> Self:
        """Airflow asks it for the words, rendered: a copy, since tasks and tries may share it."""
        rendered, task = copy(self), context["task"]
        for name in self.template_fields:
            setattr(rendered, name, task.render_template(getattr(self, name), context))
        return rendered

    def __repr__(self) -> str:
        """The same for the same words: a DAG's version is told by it."""
        words = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({words})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment] # it is changed when its templates are rendered

    @abstractmethod
    def open(self, *, most_rows: int | None = None) -> Source:
        """What reads it; see `source_of`."""


class Files(Words):
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

    def open(self, *, most_rows: int | None = None) -> FileSource:
        """What reads them.

        Raises:
            ConfigurationError: the words make no sense together.
            ConnectionMissingError: a path names a connection that Airflow does not know.
        """
        del most_rows  # counted when they are scanned
        patterns = _paths_of(self.paths)
        if not patterns or not all(each.strip() for each in patterns):
            raise ConfigurationError(f"source: {self!r} names no files")
        return source_for(patterns, _selection(self), format=self.format, delimiter=self.delimiter)


class Query(Words):
    """A query's rows as an operator's ``source``. Its columns are the rows' fields.

    ::

        LLMBatchOperator(
            source=Query("SELECT id, body FROM tickets WHERE day = '{{ ds }}'", conn_id="crm", custom_id="id"), ...
        )

    It is asked once, when the run begins, and its rows are kept in the run's folder until the run is finished: asked
    again it might give others, or give them in another order. They stream through a cursor on the server, where the
    database has one.

    Raises:
        ConfigurationError: for a limit that can't be meant.

    Args:
        sql: one statement that gives rows. Templated.
        conn_id: a connection of any provider whose hook is a `DbApiHook`. Templated.
        parameters: the statement's, in its driver's style. Templated.
        columns: fields that rows have; None: all. Templated.
        custom_id: the column that is a row's label; None: ``custom_id``. Templated.
        limit: the first so many rows alone, for a trial; None: all.
    """

    template_fields = ("sql", "conn_id", "parameters", "columns", "custom_id")

    def __init__(
        self,
        sql: str,
        *,
        conn_id: str,
        parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        columns: Sequence[str] | None = None,
        custom_id: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.sql = sql
        self.conn_id = conn_id
        self.parameters = parameters
        self.columns = columns
        self.custom_id = custom_id
        self.limit = limit
        Selection(limit=limit)

    def __repr__(self) -> str:
        """As of all words; parameters may be nobody's to read."""
        shown = copy(self)
        if self.parameters is not None:
            shown.parameters = [*self.parameters] if isinstance(self.parameters, Mapping) else ["…"]
        return super(Query, shown).__repr__()

    def open(self, *, most_rows: int | None = None) -> SpooledSource:
        """What asks for them.

        Raises:
            ConfigurationError: the words make no sense.
        """
        for name in ("sql", "conn_id"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ConfigurationError(f"source: a Query needs {name}, and has {getattr(self, name)!r}")
        asked = {"sql": self.sql, "conn_id": self.conn_id, "parameters": digest_of(self.parameters)}
        return SpooledSource(
            lambda: stream(self.conn_id, self.sql, self.parameters),
            name=f"the query on {self.conn_id}",
            spec=asked,
            selection=_selection(self),
            most_rows=most_rows,
        )


class Returned(Words):
    """What a function returns: see `FunctionSource`.

    Args:
        call: calls it.
        name: the function's.
        arguments: what it is called with.
    """

    def __init__(self, call: Callable[[], Any], *, name: str, arguments: Any) -> None:
        self.call = call
        self.name = name
        self.arguments = arguments

    def open(self, *, most_rows: int | None = None) -> FunctionSource:
        """What calls it."""
        return FunctionSource(self.call, name=self.name, arguments=self.arguments, most_rows=most_rows)


class FunctionSource:
    """What a function returns: rows, which are kept as a `Query`'s are, or words that say where they lie.

    The function is called once, when the run begins; one that returned words is called once in each try.

    Args:
        call: calls it.
        name: the function's.
        arguments: what it is called with, beside Airflow's context.
        most_rows: see `source_of`.
    """

    def __init__(
        self, call: Callable[[], Any], *, name: str, arguments: Any = None, most_rows: int | None = None
    ) -> None:
        self._call = call
        self._name = name
        self._arguments = arguments
        self._most_rows = most_rows
        self._store: RunStore | None = None
        self._found: Source | None = None

    def __str__(self) -> str:
        return f"what {self._name}() returns"

    def beside(self, store: RunStore) -> Self:
        """Keep its rows at the run's path."""
        self._store = store
        return self

    def spec(self) -> object:
        """Which function, and what it is called with; which rows it returned, their digest says."""
        return {"function": self._name, "arguments": digest_of(self._arguments)}

    def scan(self, chunk_rows: int) -> Scan:
        """Call it, and see what it returned; see `storage.source.Source.scan`."""
        self._found = self._returned()
        scan = self._found.scan(chunk_rows)
        return replace(scan, snapshot={**scan.snapshot, "returned": _canonical(self._found.spec())})

    def forget(self, snapshot: Mapping[str, Any]) -> None:
        """See `storage.source.Source.forget`."""
        self._of(snapshot).forget(snapshot)

    def check(self, snapshot: Mapping[str, Any], *, may_be_gone: bool = False) -> list[str]:
        """See `storage.source.Source.check`. One that says where rows lie must say the same again."""
        found = self._of(snapshot)
        if snapshot.get("kind") != SpooledSource.kind and _canonical(found.spec()) != snapshot["returned"]:
            raise SourceError(
                f"{self._name}() says now that its rows are {found}, and said otherwise when this run began. "
                "Set on_stale='restart' and clear the task to begin it anew"
            )
        return found.check(snapshot, may_be_gone=may_be_gone)

    def rows(self, snapshot: Mapping[str, Any], chunk: Chunk) -> Iterator[SourceRow]:
        """See `storage.source.Source.rows`."""
        return self._of(snapshot).rows(snapshot, chunk)

    def _of(self, snapshot: Mapping[str, Any]) -> Source:
        if self._found is None:
            kept = snapshot.get("kind") == SpooledSource.kind
            self._found = self._placed(self._spooled(())) if kept else self._returned()
        return self._found

    def _returned(self) -> Source:
        value = self._call()
        if _is_words(value):
            return self._placed(source_of(value, most_rows=self._most_rows))
        if isinstance(value, Mapping | str | bytes) or not isinstance(value, Iterable):
            raise ConfigurationError(
                f"{self._name}() returned a {type(value).__name__}: it must return rows, such as a list of objects or "
                "a generator of them, or say where they lie: a path, sources.Files, sources.Query or an Asset"
            )
        return self._placed(self._spooled(value))

    def _spooled(self, rows: Iterable[Any]) -> SpooledSource:
        return SpooledSource(lambda: rows, name=str(self), most_rows=self._most_rows)

    def _placed(self, source: Source) -> Source:
        return source if self._store is None else source.beside(self._store)


def source_of(source: Any, *, most_rows: int | None = None) -> Source:
    """The input that an operator's ``source`` names.

    Args:
        source: words, a path or several, an Asset, or rows.
        most_rows: more are refused, where they would be kept; None: any number will do.

    Raises:
        ConfigurationError: when it is none.
    """
    if isinstance(source, str) and not source.strip():
        raise ConfigurationError("source is empty after rendering. Name a file or a glob, such as s3://docs/*.jsonl")
    if isinstance(source, Words):
        return source.open(most_rows=most_rows)
    if isinstance(source, Asset):
        return source_for([source.uri])
    if paths := _paths_of(source):
        return source_for(paths)
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        return ListSource(source)
    raise ConfigurationError(
        f"source is a {type(source).__name__}; give a path or glob of files, a list of them, sources.Files, "
        "sources.Query, an Asset, or rows"
    )


def digest_of(values: Any) -> str | None:
    """Tells values apart, without what is in them; None where there are none, or JSON has no word for them."""
    if not values:
        return None
    try:
        return f"sha256:{hashlib.sha256(canonical(plain(_listed(values)))).hexdigest()[:16]}"
    except (TypeError, ValueError, RecursionError):
        return None


def _listed(values: Any) -> Any:
    """The same, with what only acts as a list made one: outputs of mapped tasks do."""
    if isinstance(values, Mapping):
        return {name: _listed(each) for name, each in values.items()}
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return [_listed(each) for each in values]
    return values


def _canonical(spec: object) -> str:
    return canonical(spec).decode()


def _paths_of(value: Any) -> list[str] | None:
    """A path, or paths, as texts; None where it is something else."""
    if isinstance(value, str | PathLike | ObjectStoragePath):
        return [str(value)]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        return None
    paths = [str(each) for each in value if isinstance(each, str | PathLike | ObjectStoragePath)]
    return paths if len(paths) == len(value) else None


def _is_words(value: Any) -> bool:
    return isinstance(value, Words | Asset) or bool(_paths_of(value))


def _selection(words: Any) -> Selection:
    """What a DAG takes of its rows."""
    if words.columns is not None and (isinstance(words.columns, str) or not isinstance(words.columns, Sequence)):
        raise ConfigurationError(f"source: columns must be a list of names, not {words.columns!r}")
    return Selection(
        columns=None if words.columns is None else tuple(words.columns),
        custom_id=words.custom_id or None,  # a template may render to nothing
        limit=words.limit,
    )
