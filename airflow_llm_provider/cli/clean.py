"""``airflow llm-batch clean``: remove finished runs, or what they keep beside their results, that are older than asked.

Owns which runs those are, and which objects are theirs: what a run writes, and nothing else that lies in its folder. A
run without a manifest of its own is never touched, however old it is: it may be in progress, waiting for its night, or
about to be resumed; it is told of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
from airflow.configuration import AIRFLOW_HOME
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.core.effective import first_set
from airflow_llm_provider.exceptions import LLMBatchError
from airflow_llm_provider.operators.effective import configured
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

_AGE = re.compile(r"(\d{1,5})([dh])")
_PROMPTS = re.compile(r"(?:dead-letter|errors)-[0-9a-f]{12}\.jsonl|_run/(?:input|dead|shares/\d+/_run/dead)/.*")
"""What holds rows that did not succeed, and what a replay would need of them."""


@dataclass(frozen=True, slots=True)
class Old:
    """A finished run that is old enough.

    Attributes:
        folder: its path below the base.
        finished_at: when.
        names: its objects that are to go, in its folder.
        size_bytes: of these.
    """

    folder: str
    finished_at: str
    names: list[str]
    size_bytes: int


@suppress_logs_and_warning
@providers_configuration_loaded
def clean(args: Namespace) -> None:
    """Print what is old, and remove it where that is said with ``--yes``.

    Raises:
        SystemExit: with 1, where the age is none, or storage fails.
    """
    before = utc_now() - age_of(args.older_than)
    base = first_set("results_base", [configured("results_base", str)], f"file://{AIRFLOW_HOME}/llm_batch")
    removed: list[Old] = []
    try:
        store = RunStore(args.base or base.value)
        old, others = find(store, before=before, what=args.what)
        for run in old:
            if args.yes and not _removed(store, run, before=before, what=args.what):
                others.append(f"{run.folder or '.'}  is being worked at, and stays")
                continue
            removed.append(run)
            print(  # noqa: T201
                f"{run.folder or '.'}  finished {run.finished_at}, {len(run.names):,} objects, {run.size_bytes:,} bytes"
            )
    except LLMBatchError as error:
        raise SystemExit(str(error)) from error
    for told in others:
        print(told)  # noqa: T201
    total = sum(run.size_bytes for run in removed)
    did = "removed" if args.yes else "would be removed: say --yes"
    print(f"{len(removed):,} runs, {total:,} bytes {did}")  # noqa: T201


def _removed(store: RunStore, run: Old, *, before: datetime, what: str) -> bool:
    try:
        return remove(store, run, before=before, what=what)
    except (ValueError, KeyError, TypeError):  # what could be read a moment ago can't be now
        return False


def age_of(words: str) -> timedelta:
    """How old, as ``30d`` or ``12h``.

    Raises:
        SystemExit: it says neither.
    """
    found = _AGE.fullmatch(words)
    if found is None or int(found[1]) < 1:
        raise SystemExit(f"--older-than is a number of days or hours, such as 30d or 12h, not {words!r}")
    return timedelta(days=int(found[1])) if found[2] == "d" else timedelta(hours=int(found[1]))


def find(store: RunStore, *, before: datetime, what: str) -> tuple[list[Old], list[str]]:
    """Runs that were finished before that, and words of others that are older.

    Args:
        store: the folder that runs lie below, however deep.
        before: UTC.
        what: ``runs``, or ``dead-letters``, which are taken with what a replay needs.

    Raises:
        StorageError: it could not be read.
    """
    listing = store.list("")
    folders = [name.removesuffix(layout.RUN).rstrip("/") for name in listing if _is_at_end(name, layout.RUN)]
    old, others = [], []
    for folder in folders:
        try:
            finished_at = _finished_at(store, folder, before)
        except (ValueError, KeyError, TypeError) as error:
            others.append(f"{folder or '.'}  can't be read ({type(error).__name__}: {error}), and stays")
            continue
        if finished_at is None:
            others.append(f"{folder or '.'}  is not finished, and stays")
        elif finished_at:
            names = {name: size for name, size in _of(listing, folder) if what == "runs" or _PROMPTS.fullmatch(name)}
            if names:
                old.append(Old(folder, finished_at, list(names), sum(names.values())))
    return old, others


def remove(store: RunStore, run: Old, *, before: datetime, what: str) -> bool:
    """Remove what `find` found, unless somebody works at it by now; whether it did.

    The manifest goes first, since readers rely on what it names, and the run's intent last.
    """
    at = f"{run.folder}/".lstrip("/")
    lease = _read(store, f"{at}{layout.LEASE}")
    if lease is not None and datetime.fromisoformat(lease["taken_at"]) >= before:
        return False
    if not _finished_at(store, run.folder, before):
        return False
    ends = (layout.MANIFEST, layout.RUN) if what == "runs" else ()
    for names in (ends[:1], [name for name in run.names if name not in ends], ends[1:]):
        store.delete([f"{at}{name}" for name in names])
    store.prune(run.folder)
    return True


def _finished_at(store: RunStore, folder: str, before: datetime) -> str | None:
    """When the run was finished, where that is long enough ago; empty where it is not; None where it is not finished.

    Raises:
        ValueError, KeyError, TypeError: what lies there is no run's.
    """
    at = f"{folder}/".lstrip("/")
    manifest, document = _read(store, f"{at}{layout.MANIFEST}"), _read(store, f"{at}{layout.RUN}")
    if document is None:
        return ""
    whole = manifest is not None and document["state"] == "open" and manifest["generation"] == document["generation"]
    if not whole or manifest is None:
        return None if datetime.fromisoformat(document["created_at"]) < before else ""
    return str(manifest["finished_at"]) if datetime.fromisoformat(manifest["finished_at"]) < before else ""


def _of(listing: dict[str, int], folder: str) -> Iterator[tuple[str, int]]:
    """The run's own objects, with their sizes: others' may lie in its folder, and other runs below it."""
    at = f"{folder}/".lstrip("/")
    for name, size in _below(listing, at):
        if layout.is_result(name) or name.startswith(f"{layout.RUN_FOLDER}/"):
            yield name, size


def _below(listing: dict[str, int], at: str) -> Iterable[tuple[str, int]]:
    return ((name.removeprefix(at), size) for name, size in listing.items() if name.startswith(at))


def _is_at_end(name: str, of_run: str) -> bool:
    return name == of_run or name.endswith(f"/{of_run}")


def _read(store: RunStore, name: str) -> dict[str, Any] | None:
    data = store.read(name)
    return None if data is None else dict(orjson.loads(data))
