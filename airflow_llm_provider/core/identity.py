"""Who a run is, and what shaped its answers.

Owns the run's identity, the fingerprint and the explanation of a mismatch. Does not know where either is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_SHOWN_CHARS = 120
_LONGEST_SEGMENT = 240  # of the 255 bytes that a name may have


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """One task instance across all its tries.

    Never includes the try number: that is the point. A second try must find what the first one did.

    Attributes:
        dag_id: the DAG.
        task_id: the task, task groups included.
        run_id: the DAG run.
        map_index: the mapped instance, -1 where the task is not mapped.
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1

    def as_dict(self) -> dict[str, str | int]:
        """The form kept in ``run.json``."""
        return asdict(self)

    def path(self) -> str:
        """A relative path that is this run's alone: ``dag/task/run``, with ``/3`` for map index 3."""
        parts = [_path_segment(self.dag_id), _path_segment(self.task_id), _path_segment(self.run_id)]
        if self.map_index >= 0:
            parts.append(str(self.map_index))
        return "/".join(parts)

    def __str__(self) -> str:
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{mapped} of run {self.run_id}"


def _path_segment(text: str) -> str:
    """`text` as one path segment, injectively: every other character becomes ``~`` and its UTF-8 in hex.

    ``~`` itself is not in the safe set, so two different ids never meet; a lone ``.`` or ``..`` is encoded too. What
    would be longer than file systems bear ends with its SHA-256 instead, after ``~~``.
    """
    if text.strip(".") == "":
        return "".join(f"~{byte:02X}" for byte in text.encode())
    segment = _UNSAFE.sub(lambda match: "".join(f"~{byte:02X}" for byte in match[0].encode()), text)
    if len(segment) <= _LONGEST_SEGMENT:
        return segment
    return f"{segment[: _LONGEST_SEGMENT - 34]}~~{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def fingerprint(shaping: Mapping[str, Any]) -> str:
    """Twelve hex digits of SHA-256 over the canonical JSON of everything that shapes an answer.

    Args:
        shaping: JSON values only. URLs, keys and headers do not belong in it: moving an endpoint changes no answer.
    """
    return hashlib.sha256(canonical(shaping)).hexdigest()[:12]


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        TypeError: when `value` holds something JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per value that differs between two shaping documents, for people."""
    old, new = dict(_leaves("", then)), dict(_leaves("", now))
    lines = []
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            lines.append(f"{path} was {_shown(old[path])} and is not set now")
        elif path not in old:
            lines.append(f"{path} was not set and is {_shown(new[path])} now")
        elif old[path] != new[path]:
            lines.append(f"{path} was {_shown(old[path])} and is {_shown(new[path])} now")
    return lines


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    elif value is not None:
        yield prefix, value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS // 2]}…{text[-_SHOWN_CHARS // 2 :]}"
