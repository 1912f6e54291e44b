"""``run.json``: what a run is, written before its first request.

Owns the document's shape and its encoding. Does not decide what to do with a run that is found (`opening`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, get_args

import orjson

from airflow_llm_provider.core.chunks import ChunkPlan
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.exceptions import ForeignRunError
from airflow_llm_provider.storage.layout import FORMAT_VERSION

State = Literal["carrying", "clearing", "open"]

_FINGERPRINT = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDocument:
    """A run's intent.

    Attributes:
        identity: whose run it is.
        generation: 1, and one more with each restart.
        state: ``clearing`` while a restart removes what the generation before left, then ``open``; a replay is
            ``carrying`` what stays over from there first.
        fingerprint: of everything that shapes an answer; in the name of every part.
        shaping: what was fingerprinted, readable, so that a mismatch can say what changed.
        served: what served the model at the beginning: ``model``, ``root``, ``version``, ``is_vllm``.
        snapshot: pins the source.
        plan: the chunks.
        created_at: UTC, ISO 8601.
        shares: how many tasks share the chunks; 1: one does all.
        epoch: of the task that planned the shares; None where there are none.
        replays: what was asked for again since the first of these generations was finished: ``at``, ``statuses``,
            ``rows``, the fingerprint ``of`` the generation before, and what had ``changed`` until then, in words.
    """

    identity: RunIdentity
    generation: int
    state: State
    fingerprint: str
    shaping: dict[str, Any]
    served: dict[str, Any]
    snapshot: dict[str, Any]
    plan: ChunkPlan
    created_at: str
    shares: int = 1
    epoch: int | None = None
    replays: tuple[dict[str, Any], ...] = ()

    def opened(self) -> RunDocument:
        """The same document once clearing is done."""
        return replace(self, state="open")

    def clearing(self) -> RunDocument:
        """The same document once carrying is done."""
        return replace(self, state="clearing")

    def encode(self) -> bytes:
        """The object's bytes."""
        return orjson.dumps(
            {
                "format_version": FORMAT_VERSION,
                "identity": self.identity.as_dict(),
                "generation": self.generation,
                "state": self.state,
                "fingerprint": self.fingerprint,
                "shaping": self.shaping,
                "served": self.served,
                "snapshot": self.snapshot,
                "plan": self.plan.as_dict(),
                "created_at": self.created_at,
                **({"shares": self.shares, "epoch": self.epoch} if self.epoch is not None else {}),
                **({"replays": self.replays} if self.replays else {}),
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )

    @classmethod
    def decode(cls, data: bytes, *, uri: str) -> RunDocument:
        """The inverse of `encode`.

        Raises:
            ForeignRunError: when the object is damaged or of a newer format; `uri` names it.
        """
        try:
            document = orjson.loads(data)
            version = document["format_version"]
            if version == FORMAT_VERSION:
                _check(document)
                return cls(
                    identity=RunIdentity(**document["identity"]),
                    generation=int(document["generation"]),
                    state=document["state"],
                    fingerprint=document["fingerprint"],
                    shaping=document["shaping"],
                    served=document["served"],
                    snapshot=document["snapshot"],
                    plan=ChunkPlan.from_dict(document["plan"]),
                    created_at=document["created_at"],
                    shares=int(document.get("shares", 1)),
                    epoch=document.get("epoch"),
                    replays=tuple(document.get("replays", ())),
                )
        except (ValueError, KeyError, TypeError) as error:
            raise ForeignRunError(
                f"{uri} is damaged ({type(error).__name__}: {error}), so what lies beside it cannot be trusted. "
                "Move the folder away, or give another result_path"
            ) from error
        raise ForeignRunError(
            f"{uri} has format version {version}; this package reads {FORMAT_VERSION}. "
            "Finish the run with the version that began it, or give another result_path"
        )


def _check(document: dict[str, Any]) -> None:
    """What is relied on without a further look: the fingerprint becomes a part of paths.

    Raises:
        ValueError: it is not what this package writes.
    """
    if not _FINGERPRINT.fullmatch(document["fingerprint"]):
        raise ValueError("its fingerprint is none")
    if document["state"] not in get_args(State):
        raise ValueError(f"its state is {document['state']!r}")
    if datetime.fromisoformat(document["created_at"]).tzinfo is None:
        raise ValueError("created_at names no zone")
    for name in ("shaping", "served", "snapshot"):
        if not isinstance(document[name], dict):
            raise TypeError(f"{name} is no object")
