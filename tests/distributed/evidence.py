"""What a run left behind, read without the package's own code: requests at the stub, rows in parts and journals."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import orjson
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any


class Asked:
    """The stub's log from here on: each row that was asked for, and by which try."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._at = log.stat().st_size
        self.total = 0
        self.rows: Counter[int] = Counter()
        self.by_try: dict[str, set[int]] = defaultdict(set)

    def read(self) -> Asked:
        """Take in what has come since; a line that is not written whole comes with the next look."""
        with self._log.open("rb") as lines:
            lines.seek(self._at)
            fresh = lines.read()
        fresh = fresh[: fresh.rfind(b"\n") + 1]
        self._at += len(fresh)
        for line in fresh.decode().splitlines():
            _, token, index, _ = line.split("-")  # fingerprint, try, row, send
            self.rows[int(index)] += 1
            self.by_try[token].add(int(index))
            self.total += 1
        return self

    @property
    def twice(self) -> set[int]:
        """Rows that were asked for more than once."""
        return {row for row, times in self.rows.items() if times > 1}


def landed(results: Path) -> Counter[int]:
    """Lines per row over all parts."""
    found: Counter[int] = Counter()
    for part in results.glob("part-*.jsonl"):
        found.update(orjson.loads(line)["index"] for line in part.read_bytes().splitlines())
    return found


def kept(results: Path, share: int) -> set[int]:
    """Rows that lie in parts, whosoever they are, or in the journal of a share."""
    return set(landed(results)) | journalled(results, share)


def journalled(results: Path, share: int) -> set[int]:
    """Rows in the journal of a share."""
    found: set[int] = set()
    for journal in share_folder(results, share).glob("_run/journal/*/*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # a chunk was committed meanwhile
            found |= {orjson.loads(line)["index"] for line in journal.read_bytes().splitlines()}
    return found


def token_of(results: Path, share: int) -> str | None:
    """The token of the try that holds the lease on a share; None before one does, and when it is through."""
    with contextlib.suppress(FileNotFoundError):
        token: str = orjson.loads((share_folder(results, share) / "_run" / "lease.json").read_bytes())["token"]
        return token
    return None


def share_folder(results: Path, share: int) -> Path:
    return results / "_run" / "shares" / f"{share:05}"


def manifest_of(results: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = orjson.loads((results / "manifest.json").read_bytes())
    return manifest


def wait_until(what: str, condition: Callable[[], Any], *, timeout_s: float) -> Any:
    """What the condition gives at last."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.1)
    pytest.fail(f"{what} did not happen in {timeout_s:.0f} s")
