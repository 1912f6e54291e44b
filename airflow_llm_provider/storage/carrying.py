"""Carrying a finished run's rows over to its next generation, but for those that are asked for again.

Owns the order of writes that makes it safe to interrupt. Does not decide which rows (`batch.replay`).

1. ``run.json`` of the next generation, in state ``carrying``, with what is wanted. Its fingerprint is another one, so
   that nothing that a try of before writes or removes late is this one's.
2. Each part is copied under the new fingerprint; of one with rows that are wanted, what stays is journalled instead.
   Dead letters go along. The generation before stays as it is meanwhile, its manifest too.
3. ``run.json`` in state ``clearing``: from here on it is a restart whose rows are there for the most part.

Killed in between, the next try does 2 again for what has not been copied.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.core.ledger import OpenChunk
from airflow_llm_provider.exceptions import ReplayError
from airflow_llm_provider.storage import layout, lines, opening
from airflow_llm_provider.storage.journal import Journal
from airflow_llm_provider.storage.parts import Parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_llm_provider.core.ledger import SettledLine
    from airflow_llm_provider.storage.document import RunDocument
    from airflow_llm_provider.storage.store import RunStore

_AT_ONCE = 16
"""Chunks: on S3 each is some tens of milliseconds, and there may be thousands."""


def check(store: RunStore, manifest: dict[str, Any]) -> None:
    """Whether a finished run can be carried over, as far as that is known without reading its parts.

    Raises:
        ReplayError: its dead letters are not all there.
        StorageError: it could not be found out.
    """
    failed = manifest["counts"]["total"] - manifest["counts"]["succeeded"]
    letters = sum(1 for _ in store.read_lines(layout.dead_letter(manifest["fingerprint"])))
    if letters != failed:
        raise ReplayError(
            f"{failed:,} rows of the run at {store.uri} did not succeed, and {letters:,} dead letters are there: some "
            "were removed, so that rows which are not asked for again would be without. rerun=True does all rows"
        )


def begin(store: RunStore, document: RunDocument) -> None:
    """Write down what is wanted; `document` must be in state ``carrying``."""
    store.write(layout.RUN, document.encode())


def finish(store: RunStore, document: RunDocument, try_token: str) -> RunDocument:
    """Do what `begin` wrote down; returns the document, open.

    Raises:
        ReplayError: the generation before is not as its manifest says, or is gone.
        RunStoppedError: another try has taken the run over.
        StorageError: it could not be read or written.
    """
    told = document.replays[-1]
    manifest = orjson.loads(store.read(layout.MANIFEST) or b"{}")
    if manifest.get("fingerprint") != told["of"]:
        raise ReplayError(
            f"{store.uri}/{layout.MANIFEST} is not that of the run whose rows are to be carried over (fingerprint "
            f"{told['of']}), so nobody knows which of its parts are whole. Set rerun=True and clear the task"
        )
    parts = Parts(store, document.fingerprint, try_token)
    carried = parts.load(document.plan, opening.whole_listing(store, layout.RUN))
    journal = Journal(store, document.fingerprint, try_token, ())
    carrier = _Carrier(store, parts, frozenset(told["statuses"]))
    letters = _Letters(store, layout.dead_letter(told["of"]), document.plan.chunk_rows)
    left = ((each, letters.of(each["chunk"])) for each in manifest["chunks"])
    left = (each for each in left if each[0]["chunk"] not in carried)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="llm-batch-carry") as threads:
        while batch := list(islice(left, _AT_ONCE)):
            opened = [OpenChunk(document.plan.chunk(each["chunk"])) for each, _ in batch]
            for each in threads.map(carrier.carry, batch, opened):
                if not each.complete and each.settled:
                    journal.write(each.chunk.number, list(each.settled.values()), durable=True)
            parts.record()
    clearing = document.clearing()
    opening.confirm(store, clearing)
    store.write(layout.RUN, clearing.encode())
    return opening.finish_clearing(store, clearing)


class _Carrier:
    """Carries chunks of the generation before; used from several threads.

    Args:
        store: the run's.
        parts: of this generation.
        statuses: whose rows are wanted.
    """

    def __init__(self, store: RunStore, parts: Parts, statuses: frozenset[str]) -> None:
        self._store = store
        self._parts = parts
        self._statuses = statuses

    def carry(self, before: tuple[dict[str, Any], dict[int, bytes]], opened: OpenChunk) -> OpenChunk:
        """Copy a chunk that stays whole; returns it with what stays of it."""
        chunk, letters = before
        part = self._store.read(chunk["part"])
        if part is None or hashlib.sha256(part).hexdigest() != chunk["sha256"]:
            raise ReplayError(
                f"{self._store.uri}/{chunk['part']} is not what the manifest says: another try, or a person, has "
                "changed or removed it. Set rerun=True and clear the task: the run is begun anew"
            )
        if len(letters) != chunk["rows"] - chunk["succeeded"]:
            raise ReplayError(
                f"{len(letters):,} dead letters of {self._store.uri}/{chunk['part']} are there, and "
                f"{chunk['rows'] - chunk['succeeded']:,} rows of it did not succeed. Set rerun=True and clear the task"
            )
        opened.settled = dict(self._staying(part, letters))
        if opened.complete:
            self._parts.commit(opened)
        return opened

    def _staying(self, part: bytes, letters: dict[int, bytes]) -> Iterator[tuple[int, SettledLine]]:
        for index, settled in lines.decode_lines(part):
            if settled.status not in self._statuses:
                settled.dead_letter = letters.get(index)
                yield index, settled


class _Letters:
    """The dead letters of a finished run, a chunk at a time: they may be as large as the input.

    Args:
        store: the run's.
        name: where they lie.
        chunk_rows: rows of a chunk.
    """

    def __init__(self, store: RunStore, name: str, chunk_rows: int) -> None:
        self._chunks = groupby(_numbered(store.read_lines(name)), key=lambda each: each[0] // chunk_rows)
        self._next = next(self._chunks, None)

    def of(self, chunk: int) -> dict[int, bytes]:
        """Those of a chunk, by index; asked for in order."""
        while self._next is not None and self._next[0] < chunk:
            self._next = next(self._chunks, None)
        if self._next is None or self._next[0] != chunk:
            return {}
        found = dict(self._next[1])
        self._next = next(self._chunks, None)
        return found


def _numbered(letters: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    for line in letters:
        yield orjson.loads(line)["index"], line
