"""Parts: what a committed chunk becomes, and the record of what is committed.

Owns the commit (dead letters, then the part, in one PUT or rename) and finding out, at a resume, which chunks have a
part. Does not know the journal, which `batch.recorder` drops after the commit, nor who may write (`lease`).

A part is put where none lies. Where one does, another try has committed the chunk, and that part counts: rows that were
answered twice land once, and what a manifest says of a part stays true.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import orjson

from airflow_llm_provider.core.ledger import ChunkSummary, Totals
from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage import layout, lines
from airflow_llm_provider.storage.store import read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from airflow_llm_provider.core.chunks import Chunk, ChunkPlan
    from airflow_llm_provider.core.ledger import OpenChunk
    from airflow_llm_provider.core.request import Status, Usage
    from airflow_llm_provider.storage.store import RunStore

log = logging.getLogger(__name__)

_LETTERS_AT_ONCE = 16
"""Chunks' dead letters that are read ahead: they may be as large as the input."""


class Parts:
    """One try's view of a run's parts.

    Args:
        store: the run's storage.
        fingerprint: the run's; it is in every part's name, so a part of other answers is never taken for ours.
        try_token: this try's own token.
        plan: the run's chunks, where they are shared.
        shares: how many share them.
    """

    def __init__(
        self, store: RunStore, fingerprint: str, try_token: str, *, plan: ChunkPlan | None = None, shares: int = 1
    ) -> None:
        self._store = store
        self._plan = plan
        self._shares = shares
        self._fingerprint = fingerprint
        self._try_token = try_token
        self._sequence = 0
        self._unrecorded: list[ChunkSummary] = []

    def commit(self, opened: OpenChunk) -> ChunkSummary:
        """Put the chunk's part in place; returns what the part that lies there says, which may be another try's.

        Its dead letters come first: a part says that nothing of the chunk is left to do.
        """
        number = opened.chunk.number
        settled = [opened.settled[index] for index in sorted(opened.settled)]
        data = b"".join(row.line for row in settled)
        summary = _summary(number, data, [(row.status, row.usage) for row in settled])
        letters = [row.dead_letter for row in settled if row.dead_letter is not None]
        if letters:
            self._store.put_new(self._dead(summary), b"".join(letters))  # what lies there is the same: its name says so
        name = layout.part(number, self._fingerprint)
        if not self._store.put_new(name, data):
            there = self._read(opened.chunk, name)
            if there is not None:
                return there
            self._store.write(name, data)  # what lies there is damaged
        self._unrecorded.append(summary)
        return summary

    def record(self) -> None:
        """Write down the commits since the last call. A lost record costs a resume the reading of those parts."""
        if not self._unrecorded:
            return
        folder = self._folder(self._unrecorded[0].number)  # a try has chunks of one share alone
        name = f"{folder}{layout.commits(self._fingerprint, self._try_token, self._sequence)}"
        self._sequence += 1
        pieces = [orjson.dumps(summary.as_dict(), option=orjson.OPT_APPEND_NEWLINE) for summary in self._unrecorded]
        self._store.write(name, b"".join(pieces), durable=False)
        self._unrecorded.clear()

    def load(self, plan: ChunkPlan, listing: Mapping[str, int]) -> dict[int, ChunkSummary]:
        """Which chunks have a part, from the run's `listing` (names and sizes).

        A part counts by what its commit record says when the sizes agree, else by its own lines. One that a record
        tells of and the listing does not show is looked for by its name: listings of some stores are late.
        """
        records = self._agreed(listing)
        committed: dict[int, ChunkSummary] = {}
        for name, size_bytes in listing.items():
            parsed = layout.parse_part(name)
            if parsed is None or parsed[1] != self._fingerprint or parsed[0] >= len(plan):
                continue
            number = parsed[0]
            summary = records.get(number)
            if summary is None or summary.bytes != size_bytes:
                summary = self._read(plan.chunk(number), name)
            if summary is not None:
                committed[number] = summary
        for number in records.keys() - committed.keys():
            name = layout.part(number, self._fingerprint)
            if number < len(plan) and name not in listing:
                summary = self._read(plan.chunk(number), name)
                if summary is not None:
                    committed[number] = summary
        return committed

    def load_share(self, chunks: range) -> dict[int, ChunkSummary]:
        """The same for one share's chunks alone, of which there are few: each part is looked for by its name."""
        plan = self._plan
        if plan is None or not chunks:
            return {}
        folder = self._folder(chunks.start)
        records = self._agreed(self._store.list(f"{folder}{layout.COMMITS}"))
        committed = {}
        for number in chunks:
            name = layout.part(number, self._fingerprint)
            size_bytes = self._store.size(name)
            summary = records.get(number)
            if size_bytes is not None and (summary is None or summary.bytes != size_bytes):
                summary = self._read(plan.chunk(number), name)
            if size_bytes is not None and summary is not None:
                committed[number] = summary
        return committed

    def check(self, committed: Mapping[int, ChunkSummary], listing: Mapping[str, int]) -> None:
        """Compare what was committed with what lies there: a manifest names no part that does not.

        Raises:
            StorageError: when a part is gone or was changed.
        """
        for number, summary in committed.items():
            name = layout.part(number, self._fingerprint)
            size_bytes = listing.get(name)
            if size_bytes is None and (data := self._store.read(name)) is not None:  # listings of some stores are late
                size_bytes = len(data)
            if size_bytes != summary.bytes:
                now = "is gone" if size_bytes is None else f"has {size_bytes:,}"
                raise StorageError(
                    f"{self._store.uri}/{name} was committed with {summary.bytes:,} bytes and {now} now: another try, "
                    "or a person, has been at work there. The next try looks again, and does again what is missing"
                )

    def assemble_dead_letters(self, committed: Mapping[int, ChunkSummary], listing: Mapping[str, int]) -> None:
        """Write all chunks' dead letters as one object, in input order.

        Where some of the chunks' own are gone, they were assembled before: an end that was interrupted, or a manifest
        that was moved away. Then what was assembled stays as it is.

        Only of chunks with rows that did not succeed: a try killed between dead letters and part leaves letters behind
        that the next try, in which the rows succeed, does not overwrite.

        Raises:
            StorageError: when letters are gone and never were assembled, too.
        """
        names = {
            self._dead(summary): layout.part(number, self._fingerprint)
            for number, summary in sorted(committed.items())
            if summary.dead_letters
        }
        assembled = layout.dead_letter(self._fingerprint)
        if names.keys() <= listing.keys():
            self._store.write_from(assembled, self._letters(names))
        elif assembled not in listing and self._store.size(assembled) is None:  # listings of some stores are late
            raise self._lost(next(part for name, part in names.items() if name not in listing))

    def _letters(self, names: Mapping[str, str]) -> Iterator[bytes]:
        """The bytes of each of `names`, which maps them to their parts."""
        awaited = iter(names.items())
        for found, data in read_all(self._store, names, at_once=_LETTERS_AT_ONCE):
            name, part = next(awaited)
            if found != name:
                raise self._lost(part)
            yield data
        for _, part in awaited:
            raise self._lost(part)

    def _folder(self, chunk: int) -> str:
        """Where what belongs to the chunk's share lies: a prefix of names."""
        if self._plan is None:
            return ""
        return f"{layout.share(self._plan.share_of(chunk, self._shares))}/"

    def _dead(self, summary: ChunkSummary) -> str:
        return f"{self._folder(summary.number)}{layout.dead(summary.number, self._fingerprint, summary.sha256)}"

    def _lost(self, part: str) -> StorageError:
        return StorageError(
            f"The dead letters of {self._store.uri}/{part} are gone from {layout.DEAD}, so the rows that did not "
            "succeed would be lost to whoever mends them. If the next try says so again, remove that part: its rows "
            "are then done again"
        )

    def _agreed(self, listing: Mapping[str, int]) -> dict[int, ChunkSummary]:
        """What records say, but where two tries' differ: the part itself tells then."""
        agreed: dict[int, ChunkSummary] = {}
        doubtful = set()
        for number, summary in self._records(listing):
            if agreed.setdefault(number, summary) != summary:
                doubtful.add(number)
        return {number: summary for number, summary in agreed.items() if number not in doubtful}

    def _records(self, listing: Mapping[str, int]) -> Iterator[tuple[int, ChunkSummary]]:
        ours = f"{layout.COMMITS}/{self._fingerprint}-"
        names = [name for name in listing if ours in name]
        for name, data in read_all(self._store, names):
            for line in data.splitlines():
                try:
                    summary = ChunkSummary.from_dict(orjson.loads(line))
                except (ValueError, KeyError, TypeError):
                    log.warning("%s/%s: a damaged line; its part is read instead", self._store.uri, name)
                    continue
                yield summary.number, summary

    def _read(self, chunk: Chunk, name: str) -> ChunkSummary | None:
        """What a part says; None where it does not hold its chunk's rows."""
        data = self._store.read(name)
        if data is None:
            return None
        try:
            rows = lines.decode_part(data)
        except ValueError as error:
            rows = []
            log.warning("%s/%s: %s", self._store.uri, name, error)
        if [index for index, _, _ in rows] != list(range(chunk.first_index, chunk.first_index + chunk.rows)):
            log.warning("%s/%s does not hold its chunk's rows; the chunk is done again", self._store.uri, name)
            return None
        summary = _summary(chunk.number, data, [(status, usage) for _, status, usage in rows])
        self._unrecorded.append(summary)
        return summary


def _summary(number: int, data: bytes, rows: Iterable[tuple[Status, Usage]]) -> ChunkSummary:
    totals = Totals()
    for status, used in rows:
        totals.count(status)
        totals.usage += used
    return ChunkSummary(
        number=number,
        rows=totals.done,
        succeeded=totals.succeeded,
        truncated=totals.truncated,
        invalid_output=totals.invalid_output,
        errored=totals.errored,
        usage=totals.usage,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
