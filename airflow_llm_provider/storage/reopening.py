"""Opening a finished run again, so that some of its rows are asked for once more and all others stay as they are.

Owns the order of writes that makes it safe to interrupt. Does not decide which rows (`batch.replay`).

1. ``_run/before.json``, the manifest as it stands; then ``run.json`` in state ``reopening``, with what is wanted.
2. The manifest is removed: while it stands, readers may rely on what it names.
3. Of each part with such rows, what stays is journalled, with its dead letters, and then the part is removed; of a part
   with other dead letters only, those are put back to where the run's end assembles them from.
4. ``run.json`` in state ``open``. From here on it is an unfinished run like any other.

Killed in between, the next try does 2 and 3 again: a part that is gone has been journalled.
"""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage import layout, lines, opening
from airflow_llm_provider.storage.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from airflow_llm_provider.core.ledger import SettledLine
    from airflow_llm_provider.storage.document import RunDocument
    from airflow_llm_provider.storage.store import RunStore


def begin(store: RunStore, document: RunDocument, manifest: dict[str, Any]) -> None:
    """Write down what is wanted; `document` must be in state ``reopening``."""
    store.write(layout.BEFORE, orjson.dumps(manifest))
    store.write(layout.RUN, document.encode())


def finish(store: RunStore, document: RunDocument, try_token: str) -> RunDocument:
    """Do what `begin` wrote down; returns the document, open.

    Raises:
        StorageError: something of the run is not as its manifest says.
        RunStoppedError: another try has taken the run over.
    """
    data = store.read(layout.BEFORE)
    if data is None:
        raise StorageError(
            f"{store.uri}/{layout.BEFORE} is gone while the run was being opened again, so nobody knows which of its "
            "parts are whole. Set rerun=True and clear the task: the run is begun anew"
        )
    before = orjson.loads(data)
    statuses = frozenset(document.replays[-1]["statuses"])
    journal = Journal(store, document.fingerprint, try_token, ())
    store.delete([layout.MANIFEST, layout.PROGRESS, layout.TRIES, layout.ATTEMPTS])
    letters = _Letters(store, layout.dead_letter(document.fingerprint), document.plan.chunk_rows)
    for chunk in before["chunks"]:
        if chunk["rows"] == chunk["succeeded"]:
            continue
        number = chunk["chunk"]
        its = letters.of(number)
        part = store.read(chunk["part"])
        if part is None:
            continue
        if hashlib.sha256(part).hexdigest() != chunk["sha256"]:
            raise StorageError(
                f"{store.uri}/{chunk['part']} is not what the manifest of before says: another try, or a person, has "
                "changed it. Set rerun=True and clear the task: the run is begun anew"
            )
        if any(chunk.get(status, 0) for status in statuses):
            kept = _kept(part, its, statuses)
            if kept:
                journal.write(number, kept)
            store.delete([chunk["part"]])
        else:
            name = layout.dead(number, document.fingerprint, chunk["sha256"])
            store.write(name, b"".join(its[index] for index in sorted(its)))
    opened = document.opened()
    opening.confirm(store, opened)
    store.write(layout.RUN, opened.encode())
    return opened


def _kept(part: bytes, letters: dict[int, bytes], statuses: Collection[str]) -> list[SettledLine]:
    """What of a part stays."""
    kept = []
    for index, settled in lines.decode_lines(part):
        if settled.status not in statuses:
            settled.dead_letter = letters.get(index)
            kept.append(settled)
    return kept


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
