"""The manifest: what a finished run says of itself, on storage and as the task's XCom.

Owns its shape (`docs/run-format.md`). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_llm_provider.storage import layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.core.ledger import Ledger
    from airflow_llm_provider.storage.document import RunDocument


def build(
    document: RunDocument, ledger: Ledger, *, uri: str, finished_at: str, duration_s: float, dead_letters: int
) -> dict[str, Any]:
    """The manifest of a run whose every chunk is committed.

    Args:
        document: the run.
        ledger: finished.
        uri: the run's path.
        finished_at: UTC, ISO 8601.
        duration_s: wall-clock seconds from the run's beginning to its end, waits between tries included.
        dead_letters: lines of the dead-letter object.
    """
    totals = ledger.totals
    return {
        "format_version": layout.FORMAT_VERSION,
        "identity": document.identity.as_dict(),
        "generation": document.generation,
        "fingerprint": document.fingerprint,
        "counts": totals.counts(),
        "usage": totals.usage.as_dict(),
        "started_at": document.created_at,
        "finished_at": finished_at,
        "duration_s": round(duration_s, 3),
        "served": document.served,
        "result_path": uri,
        "parts": f"{uri}/part-*-{document.fingerprint}.jsonl",
        "dead_letter": f"{uri}/{layout.dead_letter(document.fingerprint)}" if dead_letters else None,
        "replays": list(document.replays),
        "chunks": [
            {"part": layout.part(number, document.fingerprint), **summary.as_dict()}
            for number, summary in sorted(ledger.committed.items())
        ],
    }


def for_xcom(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest without its list of chunks: small whatever the run's size."""
    return {key: value for key, value in manifest.items() if key != "chunks"}
