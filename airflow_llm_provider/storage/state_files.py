"""Files kept in a store of keys and values: a small run in Airflow's own task state store.

Owns how files become keys, and how much they may be. Speaks as much of fsspec's language as `store.RunStore` asks for.
Does not know what the files mean, nor Airflow: values come and go through `KeyValues`.

The store cannot list its keys, so an index lies at one of them. A file is written in pieces under keys that are new,
and is there when the index says so: killed in between, the old one is, and the pieces are overwritten by the next.
Bytes are compressed, and kept as base64, for a value is JSON. Two writers are kept apart by Airflow: a try that was
superseded can neither read nor write. Within a process one thread at a time changes the index.
"""

from __future__ import annotations

import base64
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "llm_batch.file"

PIECE = 60_000
"""Characters of a value: Airflow warns above 65,535 bytes."""

MOST_BYTES = 8 * 2**20
"""Of all files together, before they are compressed: rows of Airflow's database, and answers become an XCom."""


class KeyValues(Protocol):
    """Airflow's ``context["task_state_store"]``, as far as it is used."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value; `default` where there is none."""
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
        self._changes = threading.Lock()

    def cat_file(self, path: str) -> bytes:
        """The file's bytes.

        Raises:
            FileNotFoundError: there is none.
            OSError: a piece of it is gone.
        """
        with self._changes:  # or another thread might replace it meanwhile
            number, pieces, _ = self._entry(path)
            found = [self._values.get(key) for key in _keys(number, pieces)]
        if any(piece is None for piece in found):
            raise OSError(
                f"{path}: a part of it is no longer in the task state store; it keeps values for a while only"
            )
        return zlib.decompress(base64.b64decode("".join(found)))

    def info(self, path: str) -> dict[str, Any]:
        """``name`` and ``size`` in bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        return {"name": path, "size": self._entry(path)[2], "type": "file"}

    def find(self, base: str, *, detail: bool) -> dict[str, dict[str, Any]]:  # noqa: ARG002 - fsspec's signature
        """The file at `base`, or all below it.

        Raises:
            FileNotFoundError: there is none.
        """
        found = {
            path: {"name": path, "size": size, "type": "file"}
            for path, (_, _, size) in self._index()["files"].items()
            if path == base or path.startswith(f"{base}/")
        }
        if not found:
            raise FileNotFoundError(base)
        return found

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        """Put the whole file in place at once.

        Raises:
            FileExistsError: `mode` is ``create`` and there is one.
            ConfigurationError: all of them would be too much.
        """
        text = base64.b64encode(zlib.compress(data)).decode()
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        with self._changes:
            index = self._index()
            files = index["files"]
            before = files.get(path)
            if before is not None and mode == "create":
                raise FileExistsError(path)
            kept = sum(size for _, _, size in files.values()) - (before[2] if before else 0) + len(data)
            if kept > self._most_bytes:
                raise ConfigurationError(
                    f"The run would keep {kept:,} bytes in Airflow, and one with checkpoint='xcom' may keep "
                    f"{self._most_bytes:,}. Leave checkpoint out, and give a result_path on object storage"
                )
            number = index["next"]
            for key, piece in zip(_keys(number, len(pieces)), pieces, strict=True):
                self._values.set(key, piece)
            files[path] = [number, len(pieces), len(data)]
            index["next"] = number + 1
            self._values.set(PREFIX, index)
            self._remove([before] if before else [])

    def put_file(self, local: str, path: str) -> None:
        """Put a local file in place."""
        self.pipe_file(path, Path(local).read_bytes())

    def rm_file(self, path: str) -> None:
        """Remove it.

        Raises:
            FileNotFoundError: there is none.
        """
        self.rm(path)

    def rm(self, base: str, *, recursive: bool = False) -> None:
        """Remove the file at `base`; `recursive`, all below it.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._changes:
            index = self._index()
            gone = [path for path in index["files"] if path == base or (recursive and path.startswith(f"{base}/"))]
            if not gone:
                raise FileNotFoundError(base)
            entries = [index["files"].pop(path) for path in gone]
            self._values.set(PREFIX, index)
            self._remove(entries)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Nothing is cached."""

    def _entry(self, path: str) -> list[int]:
        files = self._index()["files"]
        if path not in files:
            raise FileNotFoundError(path)
        entry: list[int] = files[path]
        return entry

    def _index(self) -> dict[str, Any]:
        """``files``: number, pieces and bytes of each path; ``next``: the next number."""
        index = self._values.get(PREFIX)
        return {"next": 0, "files": {}} if index is None else dict(index)

    def _remove(self, entries: list[list[int]]) -> None:
        for number, pieces, _ in entries:
            for key in _keys(number, pieces):
                self._values.delete(key)


def _keys(number: int, pieces: int) -> Iterator[str]:
    return (f"{PREFIX}.{number}.{piece}" for piece in range(pieces))
