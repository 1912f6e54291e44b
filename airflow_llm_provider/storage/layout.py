"""Where everything of a run lies, relative to its path.

::

    part-00000-<fingerprint>.jsonl    a committed chunk: rows in input order, one line per input index
    dead-letter-<fingerprint>.jsonl   rows that need a person: request, error, attempts
    results-<words>-00000-<fingerprint>.parquet   what sinks write; <words> is of what the DAG said of it
    output-<fingerprint>.jsonl, errors-<fingerprint>.jsonl
    manifest.json                     the run's summary, written last
    _run/run.json                     identity, fingerprint, source snapshot, chunk plan; before the first request
    _run/progress.json                overwritten every few seconds
    _run/lease.json                   which try may write, while one works
    _run/tries.json                   how many tries in a row brought it nowhere, where that is counted
    _run/attempts.json                what rows have spent, while a try that is held is away
    _run/journal/00042/<fingerprint>-<try>-00007.jsonl   settled rows of chunk 42, one object per flush
    _run/commits/<fingerprint>-<try>-00007.jsonl   summaries of committed chunks: a resume need not read their parts
    _run/dead/00042-<fingerprint>-<part>.jsonl   dead letters of chunk 42, until the run's end assembles them
    _run/shares/00003/_run/…          lease, progress, journal, commits and dead letters of share 3, of a run in shares
    _run/input/<token>-00000.jsonl    rows that can be had once only, until the run is finished: see `storage.spool`
    _run/replay.json                  which rows somebody wants asked for again, until the next try sees it
    _run/tmp/                         files being written, where the storage is a file system

Owns the names. `docs/run-format.md` describes the contents. `<try>` is a token that each try makes for itself, so that
two tries never write the same journal object; `<fingerprint>`, into which the generation goes, so that what a try of
an earlier one writes or removes late is never this one's; `<part>` is of the part's SHA-256, so that letters and part
are always of the same try.
"""

from __future__ import annotations

import re

FORMAT_VERSION = 1

RUN_FOLDER = "_run"
RUN = "_run/run.json"
PROGRESS = "_run/progress.json"
TRIES = "_run/tries.json"
ATTEMPTS = "_run/attempts.json"
LEASE = "_run/lease.json"
REPLAY = "_run/replay.json"
MANIFEST = "manifest.json"
JOURNAL = "_run/journal"
COMMITS = "_run/commits"
DEAD = "_run/dead"
SHARES = "_run/shares"
INPUT = "_run/input"

_PART = re.compile(r"part-(\d{5,})-([0-9a-f]{12})\.jsonl")
_DEAD_LETTER = re.compile(r"dead-letter-([0-9a-f]{12})\.jsonl")
_OF_SINKS = re.compile(r"(?:results-[0-9a-f]{6}-\d{5,}|output|errors)-([0-9a-f]{12})\.(?:parquet|jsonl)")
_FOR_RESUMES = re.compile(
    r"(?:_run/shares/\d+/)?_run/(?:journal/\d+/([0-9a-f]{12})-|commits/([0-9a-f]{12})-|dead/\d+-([0-9a-f]{12})-).*"
)


def part(chunk: int, fingerprint: str) -> str:
    """The part of a committed chunk."""
    return f"part-{chunk:05}-{fingerprint}.jsonl"


def parse_part(name: str) -> tuple[int, str] | None:
    """Chunk number and fingerprint of a part's name; None for any other name."""
    match = _PART.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def dead_letter(fingerprint: str) -> str:
    """The dead letters of a finished run."""
    return f"dead-letter-{fingerprint}.jsonl"


def is_result(name: str) -> bool:
    """Whether a run writes it for its readers."""
    of_others = (_DEAD_LETTER, _OF_SINKS)
    return name == MANIFEST or parse_part(name) is not None or any(kind.fullmatch(name) for kind in of_others)


def for_resumes(name: str) -> str | None:
    """The fingerprint in the name of what only a resume needs: journal, commit records, a chunk's dead letters."""
    match = _FOR_RESUMES.fullmatch(name)
    return match[match.lastindex] if match and match.lastindex else None


def fingerprint_of(name: str) -> str | None:
    """The fingerprint in the name of what belongs to one generation alone; None for any other name."""
    if (part := parse_part(name)) is not None:
        return part[1]
    for kind in (_DEAD_LETTER, _OF_SINKS):
        if (match := kind.fullmatch(name)) is not None:
            return match[1]
    return for_resumes(name)


def parquet(chunk: int | str, fingerprint: str, words: str) -> str:
    """A chunk's rows as Parquet; ``*`` stands for all of them. `words` tells files of other columns apart."""
    return f"results-{words}-{chunk if isinstance(chunk, str) else f'{chunk:05}'}-{fingerprint}.parquet"


def openai_output(fingerprint: str) -> str:
    """Answers as OpenAI's Batch API writes them."""
    return f"output-{fingerprint}.jsonl"


def openai_errors(fingerprint: str) -> str:
    """Errors as OpenAI's Batch API writes them."""
    return f"errors-{fingerprint}.jsonl"


def share(number: int) -> str:
    """Where what only one share writes lies, as if it were a run of its own."""
    return f"{SHARES}/{number:05}"


def spooled(token: str, number: int | None) -> str:
    """One object of rows that were had once; None: what all names of that spool begin with."""
    return f"{INPUT}/{token}-" if number is None else f"{INPUT}/{token}-{number:05}.jsonl"


def journal_folder(chunk: int) -> str:
    """Where the journal of one chunk lies."""
    return f"{JOURNAL}/{chunk:05}"


def journal(chunk: int, fingerprint: str, try_token: str, sequence: int) -> str:
    """One flush of one chunk."""
    return f"{journal_folder(chunk)}/{fingerprint}-{try_token}-{sequence:05}.jsonl"


def commits(fingerprint: str, try_token: str, sequence: int) -> str:
    """One batch of commit records."""
    return f"{COMMITS}/{fingerprint}-{try_token}-{sequence:05}.jsonl"


def dead(chunk: int, fingerprint: str, part_sha256: str) -> str:
    """The dead letters of one chunk, as its part of that content has them."""
    return f"{DEAD}/{chunk:05}-{fingerprint}-{part_sha256[:12]}.jsonl"
