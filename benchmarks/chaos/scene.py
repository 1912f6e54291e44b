"""Where tries are killed: an input, a model server, and a book of what was asked for and what was kept.

Owns what must hold after each try and at a run's end, and the count of what did not. Does not know who is killed when
(`files`, `object_storage`, `servers`).

What is asked for is the model server's own count. What is kept is what lies in parts and in the journal of the run's
generation. A row that was kept must not be asked for again; so what is asked for twice was in flight or not yet
journalled when the try died.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.exceptions import StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import read_all
from airflow_llm_provider.testing import Fault
from benchmarks.chaos.tries import RunningTry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from airflow_llm_provider.storage.store import RunStore
    from benchmarks.chaos.tries import End
    from benchmarks.chaos.try_process import Order

ROWS = 11
"""Three chunks of four, the last of three; the third row is refused by the server, the sixth is no JSON."""

REFUSED, NO_JSON = 2, 5


@dataclass(slots=True)
class Tally:
    """What came of one kind of kill.

    Attributes:
        kills: processes that were killed: tries, or servers.
        stood: tries that stood still while the next one worked, and then went on.
        runs: that were then brought to their end.
        tries: all of them.
        failed: tries that failed by themselves.
        twice: rows asked for again after a kill, which were in flight or not yet journalled.
        most: of them, after one kill.
        broken: each promise that was not kept, in words.
    """

    name: str
    kills: int = 0
    stood: int = 0
    runs: int = 0
    tries: int = 0
    failed: int = 0
    twice: int = 0
    most: int = 0
    broken: list[str] = field(default_factory=list)


def refuse(request: dict[str, Any], _nth: int) -> Fault | None:
    """What is wrong with one row, whoever asks for it."""
    return Fault.bad_request() if f"text {REFUSED}" in json.dumps(request) else None


def write_source(path: Path) -> str:
    """The input. Returns its path as a source."""
    lines = [json.dumps({"custom_id": f"doc-{number}", "text": f"text {number}"}) for number in range(ROWS)]
    lines[NO_JSON] = "{no json"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


class Scene:
    """One run's, from its first try to its end.

    Args:
        tally: told what comes of it.
        label: names the run where something does not hold.
        counts: the model server's requests so far, by ``X-Request-Id``.
        store: the run's path, as this process reaches it.
        refuses: whether the model server refuses the row that it is to refuse.
        once: whether a try asks for a row once; not where answers are wrong.
    """

    def __init__(
        self,
        tally: Tally,
        label: str,
        counts: Callable[[], Mapping[str, int]],
        store: RunStore,
        *,
        refuses: bool = True,
        once: bool = True,
    ) -> None:
        self._tally = tally
        self._label = label
        self._counts = counts
        self._store = store
        self._bad = [REFUSED, NO_JSON] if refuses else [NO_JSON]
        self._once = once
        self._asked: set[int] = set()  # in this generation
        self._generation, self._kept = kept_rows(store)  # what a try before has left

    def attempt(self, order: Order, act: Callable[[RunningTry], None] = lambda _: None) -> End:
        """One try, to its end or its death; `act` may kill it, or others."""
        before = dict(self._counts())
        running = RunningTry(order)
        act(running)
        end = running.end()
        self._look(before)
        self._tally.tries += 1
        self._tally.kills += end.killed
        self._tally.failed += end.error is not None
        if end.for_good:
            self.broken(f"a try failed for good, so that Airflow would not make another: {end.error}")
        return end

    @contextmanager
    def stands_still(self, order: Order) -> Iterator[RunningTry | None]:
        """A try that stands still where it would have died; None where it ended before."""
        before = dict(self._counts())
        running = RunningTry(replace(order, stands_still=True))
        if not running.stands_still():
            running.end()
            yield None
            return
        self._look(before)
        self._tally.tries += 1
        self._tally.stood += 1
        try:
            yield running
        except BaseException:
            running.kill()  # or this process would wait for it for ever
            raise

    def goes_on(self, running: RunningTry, *, over: bool) -> None:
        """One that stood still while others worked: it ends by itself, and what others have kept is there still.

        It may ask for rows that others have kept meanwhile: those that it took up before it looked.

        Args:
            running: it.
            over: the run has ended meanwhile, so that it finishes the change at which it stood, and makes no other.
        """
        before = dict(read_all(self._store, self._store.list("")))
        running.go_on()
        end = running.end()
        if end.killed or end.for_good:
            self.broken(f"a try that stood still failed for good: {end.error}")
        after = dict(read_all(self._store, self._store.list("")))
        touched = [name for name in before | after if before.get(name) != after.get(name)]
        if over and len(touched) > 1:
            self.broken(f"a try that stood still changed {touched} when the run had ended")
        generation, kept = kept_rows(self._store)
        if generation != self._generation or self._kept - kept:
            self.broken(f"rows {sorted(self._kept - kept)} are gone since a try went on that had stood still")
        self._kept = kept

    def finish(self, order: Order, *, said: str = "Say: text ", generation: int = 1) -> dict[str, Any] | None:
        """Tries until one ends well, as Airflow would make them; then everything must be there, once.

        Returns:
            The manifest; None where there is none, which is told of already.
        """
        for number in range(20):
            end = self.attempt(replace(order, try_number=order.try_number + 1 + number))
            if end.manifest is not None or end.for_good:
                break
        else:
            self.broken(f"no try of twenty ends well; the last says: {end.error}")
            return None
        if end.manifest is None:
            return None
        self._tally.runs += 1
        if generation > 1 and not self._asked >= set(range(ROWS)) - {NO_JSON}:
            self.broken("not all rows were asked for anew")
        for broken in not_whole(self._store, end.manifest, bad=self._bad, said=said, generation=generation):
            self.broken(broken)
        before = dict(self._counts())
        again = self.attempt(order)
        if again.manifest != end.manifest or dict(self._counts()) != before:
            self.broken("a finished run was done again")
        return end.manifest

    def late(self, order: Order, manifest: dict[str, Any]) -> None:
        """After the run's end something arrived that a try had sent that was dead by then."""
        self._tally.runs += 1
        self.still_whole(order, manifest)

    def still_whole(
        self, order: Order, manifest: dict[str, Any], *, said: str = "Say: text ", generation: int = 1
    ) -> None:
        """Whatever a try did after the run's end."""
        before = dict(self._counts())
        for broken in not_whole(self._store, manifest, bad=self._bad, said=said, generation=generation, late=True):
            self.broken(broken)
        again = self.attempt(order)
        if again.manifest is None or dict(self._counts()) != before:
            self.broken(f"a finished run was done again, or not found: {again.error}")

    def broken(self, what: str) -> None:
        """A promise was not kept."""
        self._tally.broken.append(f"{self._label}: {what}")

    def _look(self, before: Mapping[str, int]) -> None:
        """After a try: what it asked for, and what is kept now."""
        generation, kept = kept_rows(self._store)
        if generation != self._generation:  # begun anew: nothing of before counts
            self._generation, self._asked, self._kept = generation, set(), set()
        asked = [
            int(name.split("-")[2])
            for name, amount in self._counts().items()
            for _ in range(amount - before.get(name, 0))
        ]
        if self._once and len(asked) > len(set(asked)):
            self.broken("a row was asked for twice within a try")
        if again := set(asked) & self._kept:
            self.broken(f"rows {sorted(again)} were asked for again, though their outcomes lay there")
        twice = len(set(asked) & self._asked)
        self._tally.twice += twice
        self._tally.most = max(self._tally.most, twice)
        if lost := self._kept - kept:
            self.broken(f"rows {sorted(lost)} lay there, and do not any more")
        self._asked |= set(asked)
        self._kept = kept


def kept_rows(store: RunStore) -> tuple[int, set[int]]:
    """The run's generation, and the rows whose outcomes count; none while a restart has not removed what was there."""
    try:
        document = json.loads(store.read(layout.RUN) or b"{}")
        finished = json.loads(store.read(layout.MANIFEST) or b"{}").get("generation") == document.get("generation")
    except StorageError:  # its server is away just now
        return 1, set()
    if not document or (document["state"] != "open" and not finished):  # a late run.json may say so of a finished one
        return document.get("generation", 1), set()
    mine = document["fingerprint"]
    names = [name for name in store.list("") if name.startswith(("part-", f"{layout.JOURNAL}/")) and mine in name]
    lines = (line for _, data in read_all(store, names) for line in data.splitlines())
    rows = (row["index"] for row in map(_loads, lines) if row is not None and "index" in row)
    return document["generation"], set(rows)


def not_whole(
    store: RunStore,
    manifest: dict[str, Any],
    *,
    bad: list[int],
    said: str = "Say: text ",
    generation: int = 1,
    late: bool = False,
) -> list[str]:
    """What is wrong with a run that has ended, in words.

    Args:
        store: its path.
        manifest: as its try handed it out.
        bad: the rows that had to error.
        said: begins each answer.
        generation: the run's.
        late: something has arrived since, so that an object too many may lie there, or a manifest of another moment.
    """
    objects = dict(read_all(store, store.list("")))
    parts = {name: data for name, data in objects.items() if name.startswith("part-")}
    rows = [json.loads(line) for _, data in sorted(parts.items()) for line in data.splitlines()]
    dead_letter = objects.get(layout.dead_letter(manifest["fingerprint"]), b"")
    letters = [json.loads(line)["index"] for line in dead_letter.splitlines()]
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    left = [name for name in objects if name.startswith((layout.JOURNAL, layout.COMMITS, layout.DEAD, layout.LEASE))]
    holds = {
        "each row has landed once": [row["index"] for row in rows] == list(range(ROWS)),
        "those errored that had to": [row["index"] for row in rows if row["status"] == "errored"] == bad,
        "each has its own answer": all(
            row["output"] == f"echo: {said}{row['index']}" for row in rows if row["status"] == "succeeded"
        ),
        "its tokens are the parts'": manifest["usage"] == _tokens(rows),
        "each errored row has a dead letter": letters == bad,
        "the manifest was handed out": late or manifest == json.loads(objects.get(layout.MANIFEST, b"{}")),
        "its counts are the parts'": manifest["counts"]
        == {"total": ROWS, "succeeded": ROWS - len(bad), "truncated": 0, "invalid_output": 0, "errored": len(bad)},
        "its checksums are the parts'": {each["part"]: each["sha256"] for each in manifest["chunks"]} == sums,
        "its generation is the run's": manifest["generation"] == generation,
        "nothing is left that only a resume needs": late or not left,
    }
    return [f"it does not hold that {words}" for words, kept in holds.items() if not kept]


def _tokens(rows: list[dict[str, Any]]) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens", "cached_tokens")
    return {name: sum(row["usage"][name] for row in rows) for name in names}


def _loads(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
