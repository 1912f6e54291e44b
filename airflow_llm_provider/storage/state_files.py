"""Files kept in a store of keys and values: a small run in Airflow's own task state store.

Owns how files become keys, and how much they may be. Speaks as much of fsspec's language as `store.RunStore` asks for.
Does not know what the files mean, nor Airflow: values come and go through `KeyValues`.

The store cannot list its keys, so an index lies at one of them. A file is written in pieces under keys that are new,
and is there when the index says so: killed in between, the old one is, and the pieces are overwritten by the next. What
a kill after that leaves of the old one stays as long as the DAG run.
Bytes are compressed, and kept as base64, for a value is JSON. Two writers are kept apart by Airflow: a try that was
superseded can neither read nor write. What it reads then looks like nothing, so an index that was there once and is not
any more is an error. Within a process one thread at a time is at it.
"""

from __future__ import annotations

import base64
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PREFIX = "llm_batch.file"

PIECE = 60_000
"""Characters of a value: Airflow warns above 65,535 bytes."""

MOST_BYTES = 8 * 2**20
"""Of all files together, before they are compressed: rows of Airflow's database, and answers become an XCom."""

AT_ONCE = 2
"""A file that is created, or assembled of others, may bring them to so many times that: those are removed next."""

SMALL, NOTE = 512, 2048
"""By so small a part of what may be kept a file may grow up to there, and a new one have so small a part: a run that
has become too large can be begun anew."""


class KeyValues(Protocol):
    """Airflow's ``context["task_state_store"]``, as far as it is used."""

    def get(self, key: str) -> Any:
        """The value; None where there is none."""
        ...

    def set(self, key: str, value: Any) -> None:
        """Write or overwrite it."""
        ...

    def delete(self, key: str) -> None:
        """Remove it, where it is there."""
        ...


class StateFiles:
    """See the module.

    Args:
        values: where they are kept.
        most_bytes: see `MOST_BYTES`.
    """

    def __init__(self, values: KeyValues, *, most_bytes: int = MOST_BYTES) -> None:
        self._values = values
        self._most_bytes = most_bytes
        self._lock = threading.RLock()
        self._seen = False
        """Whether there was an index."""

    def cat_file(self, path: str) -> bytes:
        """The file's bytes.

        Raises:
            FileNotFoundError: there is none.
            OSError: a piece of it is gone, or all of them.
        """
        with self._lock:
            number, pieces, _ = self._entry(path)
            found = [self._values.get(key) for key in _keys(number, pieces)]
        if any(piece is None for piece in found):
            raise OSError(f"{path}: a part of it is no longer in the task state store")
        return zlib.decompress(base64.b64decode("".join(found)))

    def info(self, path: str) -> dict[str, Any]:
        """``name`` and ``size`` in bytes; raises FileNotFoundError where there is no such file, OSError as above."""
        with self._lock:
            return _described(path, self._entry(path))

    def find(self, base: str, *, detail: bool) -> dict[str, dict[str, Any]]:  # noqa: ARG002 - fsspec's signature
        """The file at `base`, or all below it; raises as `info` does."""
        with self._lock:
            files = self._index()["files"]
        found = {path: _described(path, entry) for path, entry in files.items() if _lies(path, base)}
        if not found:
            raise FileNotFoundError(base)
        return found

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite", *, replaces: bool = False) -> None:
        """Put the whole file in place at once.

        Args:
            path: the file.
            data: its bytes.
            mode: ``create`` leaves one that lies there.
            replaces: it is assembled of others, which are removed next.

        Raises:
            FileExistsError: `mode` is ``create`` and there is one.
            ConfigurationError: all of them would be too much.
            OSError: the index is gone.
        """
        text = base64.b64encode(zlib.compress(data)).decode()
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        with self._lock:
            index = self._index()
            files: dict[str, list[int]] = index["files"]
            before = files.get(path)
            if before is not None and mode == "create":
                raise FileExistsError(path)
            grows = len(data) - (before[2] if before else 0)
            small = grows <= self._most_bytes // (SMALL if before else NOTE)
            lightly = mode == "create" or replaces or small
            self._check_size({**files, path: [0, 0, len(data)]}, AT_ONCE if lightly else 1)
            number = index["next"]
            for key, piece in zip(_keys(number, len(pieces)), pieces, strict=True):
                self._values.set(key, piece)
            files[path] = [number, len(pieces), len(data)]
            index["next"] = number + 1
            self._write_index(index)
            self._remove([before] if before else [])

    def put_file(self, local: str, path: str) -> None:
        """Put a local file in place; raises as `pipe_file` does."""
        self.pipe_file(path, Path(local).read_bytes(), replaces=True)

    def rm_file(self, path: str) -> None:
        """Remove it; raises as `info` does."""
        if not self.remove([path]):
            raise FileNotFoundError(path)

    def remove(self, paths: Iterable[str]) -> int:
        """Remove those of `paths` that are there, with one write of the index; returns how many. Raises as `find`."""
        with self._lock:
            index = self._index()
            entries = [index["files"].pop(path) for path in paths if path in index["files"]]
            if entries:
                self._write_index(index)
                self._remove(entries)
        return len(entries)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Nothing is cached."""

    def _index(self) -> dict[str, Any]:
        """``files``: number, pieces and bytes of each path; ``next``: the next number."""
        index = self._values.get(PREFIX)
        if index is not None:
            self._seen = True
            return dict(index)
        if self._seen:
            raise OSError("the task state store has nothing of this run any more; another try may have taken it over")
        return {"next": 0, "files": {}}

    def _write_index(self, index: dict[str, Any]) -> None:
        self._values.set(PREFIX, index)
        self._seen = True

    def _entry(self, path: str) -> list[int]:
        files: dict[str, list[int]] = self._index()["files"]
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    def _check_size(self, files: dict[str, list[int]], times: int) -> None:
        size = sum(entry[2] for entry in files.values())
        if size > times * self._most_bytes:
            raise ConfigurationError(
                f"The run would keep {size:,} bytes in Airflow, and one with checkpoint='xcom' may keep "
                f"{self._most_bytes:,}: answers, and requests and errors of rows that errored. Leave checkpoint out, "
                "give a result_path on object storage, and clear the task: it begins anew there, and tasks downstream "
                "find the results at the manifest's result_path, where there is no XCom of them"
            )

    def _remove(self, entries: list[list[int]]) -> None:
        for number, pieces, _ in entries:
            for key in _keys(number, pieces):
                self._values.delete(key)


def _keys(number: int, pieces: int) -> Iterator[str]:
    return (f"{PREFIX}.{number}.{piece}" for piece in range(pieces))


def _lies(path: str, base: str) -> bool:
    return path == base or path.startswith(f"{base}/")


def _described(path: str, entry: list[int]) -> dict[str, Any]:
    return {"name": path, "size": entry[2], "type": "file"}
