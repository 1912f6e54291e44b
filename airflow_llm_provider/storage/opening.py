"""Finding, beginning, restarting and finishing a run at its path.

Owns the order of writes that makes each of them safe to interrupt, and the looks that keep two writers apart. Does not
decide whether to restart, and does not know the endpoint: `batch.execution` does.

Two task instances that were given one path, or a try that goes on beside its successor, meet at ``run.json``: it is
created where none lies, and whoever is about to remove or replace what lies there looks first whether it is theirs.

A restart writes a document of the next generation in state ``clearing``, removes what the generation before left, and
writes it again as ``open``. Killed in between, the next try finds ``clearing`` and goes on with the removal.

Between a look and a removal a try may stand still for hours while others restart the run, or finish it. So what is
removed is told by the fingerprint in its name, which is of one generation alone: a restart removes others', an end its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.exceptions import ForeignRunError, RunMissingError, RunStoppedError, StorageError
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.document import RunDocument

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_llm_provider.core.identity import RunIdentity
    from airflow_llm_provider.storage.store import RunStore


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at the run's path.

    Attributes:
        document: the run's ``run.json``; None where no run lies there.
        manifest: the manifest of the document's own generation; None while the run is unfinished.
    """

    document: RunDocument | None
    manifest: dict[str, Any] | None

    def is_as(self, other: Found) -> bool:
        """Whether the same run lies there, in the same state; it may have been finished since."""
        ours, theirs = (each.document.encode() if each.document is not None else None for each in (self, other))
        return ours == theirs and (other.manifest is None or self.manifest == other.manifest)


def find(store: RunStore, identity: RunIdentity, *, must_exist: bool) -> Found:
    """Look for the run of `identity` at the store's path.

    Args:
        store: the path.
        identity: whose run it must be.
        must_exist: an earlier try recorded that it began a run here.

    Raises:
        ForeignRunError: another run lies there, or results that no run explains.
        RunMissingError: nothing lies there although it must.
        StorageError: it could not be found out.
    """
    data = store.read(layout.RUN)
    if data is None and (result := _any_result(store)) is not None:
        data = store.read(layout.RUN)  # another try may have begun the run between both looks
        if data is None:
            raise ForeignRunError(
                f"{store.uri} holds {result} and no {layout.RUN} that would explain it. "
                "Give another result_path, or move the folder away"
            )
    if data is None:
        if must_exist:
            raise RunMissingError(
                f"An earlier try of this task began its run at {store.uri}, and no run lies there now. "
                "If the path is a local one, another worker may have written it: use storage that all workers see. "
                "If it was removed on purpose, set rerun=True and clear the task: then a run begins at this path again"
            )
        return Found(None, None)
    document = _decode(store, data, identity)
    return Found(document, _manifest(store, document))


def whole_listing(store: RunStore, shows: str) -> dict[str, int]:
    """Everything below the store's path, with sizes.

    Args:
        store: the path.
        shows: an object that is known to lie there: a listing without it is late, or another server's.

    Raises:
        StorageError: it does not show that, or could not be had.
    """
    listing = store.list("")
    if shows not in listing:
        raise StorageError(
            f"A listing of {store.uri} does not show {shows}, which lies there: it is late, or another server answered."
            " Nothing is lost; the next try lists it again"
        )
    return listing


def begin(store: RunStore, document: RunDocument) -> None:
    """Write the intent of a first generation, at a path where no run was found.

    Raises:
        ForeignRunError: another run has begun there meanwhile.
        RunStoppedError: another try of this run has.
        StorageError: it could not be written.
    """
    if not store.create(layout.RUN, document.encode()):
        confirm(store, document)


def confirm(store: RunStore, document: RunDocument) -> None:
    """Look whether the run that lies there is still the one that `document` began.

    Raises:
        ForeignRunError: it is another's: two runs were given one path, and the store let both begin.
        RunStoppedError: another try of this task has begun it, or begun it anew.
        RunMissingError: none lies there any more.
        StorageError: it could not be found out.
    """
    data = store.read(layout.RUN)
    if data is None:
        raise RunMissingError(
            f"{store.uri}/{layout.RUN} is gone: somebody removed it while the task ran. Nothing says any more what "
            "the results beside it are. Move the folder away, and clear the task with rerun=True to begin anew"
        )
    there = _decode(store, data, document.identity)
    # When it was begun tells two beginnings apart that are alike otherwise; the state does not count.
    if _beginning(there) != _beginning(document):
        raise RunStoppedError(
            f"The run at {store.uri} was begun by another try of this task at {there.created_at} (generation "
            f"{there.generation}); this try's is of {document.created_at} (generation {document.generation}). One of "
            "two tries was given up for dead too early. This one ends; the next goes on from what lies there"
        )


def restart(store: RunStore, document: RunDocument) -> RunDocument:
    """Begin `document`'s generation, whose state must be ``clearing``, in place of what lies there; returns it open."""
    store.write(layout.RUN, document.encode())
    return finish_clearing(store, document)


def finish_clearing(store: RunStore, document: RunDocument) -> RunDocument:
    """Remove everything of earlier generations; returns the document, open.

    Raises:
        RunStoppedError: another try of this task has begun it anew meanwhile.
        StorageError: it could not all be removed.
    """
    # The manifest goes first: while it stands, readers may rely on what it names.
    if _generation(store) != document.generation:
        store.delete([layout.MANIFEST])
    store.delete([layout.PROGRESS, layout.TRIES, layout.ATTEMPTS])
    listing = store.list("")
    store.delete(_foreign(listing, document.fingerprint))
    store.delete(name for name in listing if name.startswith(layout.SHARES) and layout.for_resumes(name) is None)
    store.prune(layout.RUN_FOLDER)
    opened = document.opened()
    confirm(store, opened)
    store.write(layout.RUN, opened.encode())
    return opened


def finish(store: RunStore, manifest: dict[str, Any]) -> None:
    """Write the manifest, the last thing that a run needs; `tidy` removes what it needs no more."""
    store.write(layout.MANIFEST, orjson.dumps(manifest, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_INDENT_2))


def remove_foreign(store: RunStore, listing: Iterable[str], fingerprint: str) -> None:
    """Remove what bears another fingerprint: a try of an earlier generation may have written it late."""
    store.delete(_foreign(listing, fingerprint))


def untidy(store: RunStore, document: RunDocument, *, keeps_input: bool) -> list[str]:
    """What lies there that only a resume of this run would have needed: a try may be killed at its very end.

    Args:
        store: the run's.
        document: the run.
        keeps_input: rows that can be had once are kept, for a replay.
    """
    its_input = layout.spooled(str(document.snapshot.get("token")), None)
    return [
        name
        for name in store.list(layout.RUN_FOLDER)
        if _needed_no_more(name, document.fingerprint) or (name.startswith(its_input) and not keeps_input)
    ]


def tidy(store: RunStore, names: Iterable[str]) -> None:
    """Remove what only a resume would have needed, of a finished run; the lease is the caller's."""
    store.delete(name for name in names if name != layout.LEASE)
    store.prune(layout.RUN_FOLDER)
    store.clear_scratch()


def _decode(store: RunStore, data: bytes, identity: RunIdentity) -> RunDocument:
    document = RunDocument.decode(data, uri=f"{store.uri}/{layout.RUN}")
    if document.identity != identity:
        raise ForeignRunError(
            f"{store.uri} belongs to {document.identity}, and this is {identity}. Two runs cannot share a path: "
            "put something of the run into result_path, such as {{ run_id }}, and {{ ti.map_index }} for a mapped "
            "task, or leave it out"
        )
    return document


def _foreign(listing: Iterable[str], fingerprint: str) -> list[str]:
    return [name for name in listing if layout.fingerprint_of(name) not in (None, fingerprint)]


def _needed_no_more(name: str, fingerprint: str) -> bool:
    if name.startswith(layout.SHARES) and layout.for_resumes(name) is None:
        return True  # a share's lease and progress
    notes = (layout.LEASE, layout.TRIES, layout.ATTEMPTS, layout.REPLAY)
    return name in notes or layout.for_resumes(name) == fingerprint


def _beginning(document: RunDocument) -> tuple[int, str, str]:
    return document.generation, document.fingerprint, document.created_at


def _manifest(store: RunStore, document: RunDocument) -> dict[str, Any] | None:
    data = store.read(layout.MANIFEST)
    if data is None:
        return None
    try:
        manifest: dict[str, Any] = dict(orjson.loads(data))
    except (ValueError, TypeError) as error:
        raise ForeignRunError(
            f"{store.uri}/{layout.MANIFEST} is damaged ({error}). Move it away and clear the task: "
            "the run is finished from its parts, and nothing is requested again"
        ) from error
    return manifest if manifest.get("generation") == document.generation else None


def _generation(store: RunStore) -> Any:
    """Of the manifest that lies there; None where there is none, or none that can be read."""
    try:
        return orjson.loads(store.read(layout.MANIFEST) or b"{}")["generation"]
    except (ValueError, KeyError, TypeError):
        return None


def _any_result(store: RunStore) -> str | None:
    """An object there that only a run writes; None where there is none."""
    names = (name for name in store.list("") if not name.startswith(layout.INPUT))  # of a try killed before it began
    return next((name for name in names if layout.is_result(name) or name.startswith("_run/")), None)
