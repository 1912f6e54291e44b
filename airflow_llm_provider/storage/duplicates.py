"""Finding a repeated ``custom_id`` among any number of rows in flat memory.

Owns the search: 128-bit digests, spilled to partitions on local disk once they are many, each partition small enough
to be checked in memory. Does not know sources. At ten million rows the partitions take 240 MB of disk.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from airflow_llm_provider.storage.store import storage_error

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_MEMORY_ROWS = 50_000
_PARTITIONS = 256
_RECORD = struct.Struct("<16sQ")


class DuplicateFinder:
    """Takes in labels with their row indices and names the first repeated one. A context manager: it owns files."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}
        self._partitions: list[IO[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, label: str, index: int) -> tuple[int, int] | None:
        """Take in a label. Returns (earlier index, this index) where a repetition shows at once.

        Raises:
            StorageError: when the local disk takes no more.
        """
        digest = hashlib.blake2b(label.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if self._partitions:
            with _local_disk():
                self._spill(digest, index)
            return None
        earlier = self._seen.setdefault(digest, index)
        if earlier != index:
            return earlier, index
        if len(self._seen) >= IN_MEMORY_ROWS:
            with _local_disk():
                self._open_partitions()
        return None

    def finish(self) -> tuple[int, int] | None:
        """(earlier, later) indices of a repetition among the spilled labels: the one whose second row comes first.

        Raises:
            StorageError: when a partition could not be read.
        """
        with _local_disk():
            return min(self._repetitions(), key=lambda pair: pair[1], default=None)

    def _repetitions(self) -> Iterator[tuple[int, int]]:
        for partition in self._partitions:
            partition.seek(0)
            seen: dict[bytes, int] = {}
            for digest, index in _RECORD.iter_unpack(partition.read()):
                earlier = seen.setdefault(digest, index)
                if earlier != index:
                    yield earlier, index
                    break

    def _open_partitions(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-batch-ids-")))
        self._partitions = [
            self._stack.enter_context((folder / f"{number:03}").open("w+b")) for number in range(_PARTITIONS)
        ]
        for digest, index in self._seen.items():
            self._spill(digest, index)
        self._seen.clear()

    def _spill(self, digest: bytes, index: int) -> None:
        self._partitions[digest[0]].write(_RECORD.pack(digest, index))


@contextmanager
def _local_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error("looking for duplicate ids in the local temporary folder", error) from error
