"""Kills by the thousand: of tries at each of their writes, of the model server, of the storage server.

    python -m benchmarks.chaos --kills 1000

Everything that is killed is a process, and is killed with SIGKILL, from outside the code that must survive it: on files
by an audit hook of the interpreter, on S3 by a proxy before a real server. After each death the next try goes on, and
the run it ends with must be whole; see `scene`. The seed is printed: `--seed` does the same again, as far as moments
are no part of it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from airflow_llm_provider.testing import StubVLLM
from benchmarks.arguments import count
from benchmarks.chaos import files, object_storage, servers
from benchmarks.chaos.scene import refuse, write_source
from benchmarks.chaos.try_process import hush

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.chaos.scene import Tally

DEATHS_OF_SERVERS = 20
LATE_UPLOADS = 25


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; ends with 1 where a promise was not kept, or the kills were too few."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=count, default=1_000, help="at least so many, all together")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(arguments)
    hush()
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    _say(f"seed {seed}")
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="llm-chaos-") as folder, StubVLLM(fault=refuse) as stub:
        stub.behaviour.delay_s = 0.002
        rng = Random(seed)
        source = write_source(Path(folder) / "rows.jsonl")
        for tally in _everything(Path(folder), source, stub, rng, options.kills):
            tallies.append(tally)
            _tell(tally)
        missing = options.kills - sum(each.kills for each in tallies)
        rest = files.Files(Path(folder) / "rest", source, stub).again_and_again(max(options.kills // 10, missing), rng)
        tallies.append(rest)
    _sum_up(tallies, options.kills)


def _everything(folder: Path, source: str, stub: StubVLLM, rng: Random, kills: int) -> Iterator[Tally]:
    """All kinds of deaths, one after the other."""
    on_files = files.Files(folder / "files", source, stub)
    yield from files.systematic(on_files, rng)
    for kind in ("rclone", "moto"):
        (folder / kind).mkdir()
        with object_storage.on(kind, folder / kind, source, stub) as stored:
            for how in object_storage.HOWS:
                yield stored.at_each_change(how)
            yield stored.again_and_again(kills // 20, rng)
            yield stored.uploads_come_late(LATE_UPLOADS)
            yield stored.uploads_come_in_between(LATE_UPLOADS, rng)
            yield stored.uploads_come_twice()
            if kind == "rclone":  # moto's forgets everything
                yield stored.server_dies(DEATHS_OF_SERVERS, rng)
    (folder / "model").mkdir()
    yield servers.model_server_dies(folder / "model", source, DEATHS_OF_SERVERS, rng)
    yield servers.faults(folder / "files", source, stub, kills // 10, rng)


_HEADS = ("kills", "stood", "tries", "runs", "failed", "asked twice", "at once", "broken")


def _line(name: str, cells: Sequence[object]) -> str:
    return " ".join(
        [f"{name:<52}", *(f"{cell:>{max(6, len(head))}}" for head, cell in zip(_HEADS, cells, strict=True))]
    )


def _tell(tally: Tally) -> None:
    numbers = (
        tally.kills,
        tally.stood,
        tally.tries,
        tally.runs,
        tally.failed,
        tally.twice,
        tally.most,
        len(tally.broken),
    )
    _say(_line(tally.name, numbers))
    for broken in tally.broken:
        _say(f"    BROKEN: {broken}")


def _sum_up(tallies: Sequence[Tally], wanted: int) -> None:
    _say(f"\n{_line('who dies', _HEADS)}")
    for tally in tallies:
        _tell(tally)
    kills, broken = sum(each.kills for each in tallies), sum(len(each.broken) for each in tallies)
    runs, twice = sum(each.runs for each in tallies), sum(each.twice for each in tallies)
    _say(f"\n{kills} kills, {runs} runs landed, {twice} rows asked for twice, {broken} promises broken")
    if idle := [tally.name for tally in tallies if not tally.kills + tally.stood and "twice" not in tally.name]:
        _say(f"nobody died at: {', '.join(idle)}")
    if broken or idle or kills < wanted:
        sys.exit(1)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    main()
