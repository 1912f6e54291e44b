"""``airflow llm-batch clean``: remove finished runs, or what they keep beside their results, that are older than asked.

Owns which runs those are. A run without a manifest is never touched, however old it is: it may be in progress, waiting
for its night, or about to be resumed; it is told of.
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
    from collections.abc import Iterator

_AGE = re.compile(r"(\d+)([dh])")
_LETTER = re.compile(r"dead-letter-[0-9a-f]{12}\.jsonl")


@dataclass(frozen=True, slots=True)
class Old:
    """A finished run that is old enough.

    Attributes:
        folder: its path below the base.
        finished_at: when.
        names: its objects that are to go, below the base.
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
    age = age_of(args.older_than)
    base = first_set("results_base", [configured("results_base", str)], f"file://{AIRFLOW_HOME}/llm_batch")
    store = RunStore(args.base or base.value)
    try:
        old, unfinished = find(store, before=utc_now() - age, what=args.what)
        for run in old:
            print(f"{run.folder}  finished {run.finished_at}, {len(run.names):,} objects, {run.size_bytes:,} bytes")  # noqa: T201
            if args.yes:
                remove(store, run, what=args.what)
    except LLMBatchError as error:
        raise SystemExit(str(error)) from error
    for folder in unfinished:
        print(f"{folder}  is not finished, and stays")  # noqa: T201
    total = sum(run.size_bytes for run in old)
    did = "removed" if args.yes else "would be removed: say --yes"
    print(f"{len(old):,} runs, {total:,} bytes {did}")  # noqa: T201


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
    """Runs that were finished before that, and the folders of runs that are not finished and older than that.

    Args:
        store: the folder that runs lie below, however deep.
        before: UTC.
        what: ``runs``, or ``dead-letters``, which are taken with what a replay needs.

    Raises:
        StorageError: it could not be read.
    """
    listing = store.list("")
    folders = [name.removesuffix(layout.RUN).rstrip("/") for name in listing if _is_at_end(name, layout.RUN)]
    old, unfinished = [], []
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        manifest = _read(store, f"{prefix}{layout.MANIFEST}")
        document = _read(store, f"{prefix}{layout.RUN}")
        if manifest is None or document is None or document["state"] != "open":
            if document is not None and datetime.fromisoformat(document["created_at"]) < before:
                unfinished.append(folder)
            continue
        if datetime.fromisoformat(manifest["finished_at"]) >= before:
            continue
        names = [name for name in _of(listing, prefix, folders) if what == "runs" or _is_letter(name[len(prefix) :])]
        if names:
            size_bytes = sum(listing[name] for name in names)
            old.append(Old(folder, manifest["finished_at"], names, size_bytes))
    return old, unfinished


def remove(store: RunStore, run: Old, *, what: str) -> None:
    """Remove what `find` found: the manifest first, since readers rely on what it names, and the run's intent last."""
    first = f"{run.folder}/{layout.MANIFEST}".lstrip("/")
    last = f"{run.folder}/{layout.RUN}".lstrip("/")
    if what == "runs":
        store.delete([name for name in run.names if name == first])
    store.delete([name for name in run.names if name not in (first, last)])
    if what == "runs":
        store.delete([name for name in run.names if name == last])
    store.prune(run.folder)


def _of(listing: dict[str, int], prefix: str, folders: list[str]) -> Iterator[str]:
    """The run's own objects: another run's may lie below it."""
    inner = [f"{each}/" for each in folders if each.startswith(prefix) and f"{each}/" != prefix and each]
    for name in listing:
        if name.startswith(prefix) and not name.startswith(tuple(inner)):
            yield name


def _is_letter(name: str) -> bool:
    return _LETTER.fullmatch(name) is not None or name.startswith(layout.INPUT)


def _is_at_end(name: str, of_run: str) -> bool:
    return name == of_run or name.endswith(f"/{of_run}")


def _read(store: RunStore, name: str) -> dict[str, Any] | None:
    data = store.read(name)
    try:
        return None if data is None else dict(orjson.loads(data))
    except ValueError:
        return None
