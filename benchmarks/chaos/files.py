"""Tries killed at their changes to files: at each of them in turn, and again and again.

Owns who is killed when. What must hold is `scene`'s.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.store import RunStore
from benchmarks.chaos.scene import Scene, Tally
from benchmarks.chaos.try_process import Order, Plant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random

    from airflow_llm_provider.testing import StubVLLM

MOST_CHANGES = 500

_SAID = {"": "Say: text ", "rerun=True": "Say: text ", "on_stale=restart": "Sing: text "}


class Files:
    """Runs on local files.

    Args:
        folder: where they lie.
        source: their input.
        stub: the model server.
        plant: a bug in every try.
    """

    def __init__(self, folder: Path, source: str, stub: StubVLLM, *, plant: Plant = "") -> None:
        self._folder = folder
        self._stub = stub
        self._runs = 0
        self._first = Order(uri="", source=source, url=stub.url, plant=plant)
        self._anew = {
            "on_stale=restart": replace(self._first, prompt="Sing: {{ row.text }}", on_stale="restart"),
            "rerun=True": replace(self._first, rerun=True, epoch=1),
        }

    def at_each_change(self, *, torn: bool, step: int = 1) -> Tally:
        """A first try, killed at its first change, its second, and so on; the next one goes on.

        Args:
            torn: see `Deaths`.
            step: at each of so many changes.
        """
        tally = Tally(f"first try, at each change{', torn' if torn else ''}")
        for at in range(1, MOST_CHANGES, step):
            scene, order = self._scene(tally, f"change {at}", self._first)
            killed = scene.attempt(replace(order, die_at=at, torn=torn)).killed
            scene.finish(order)
            if not killed or self._found(tally):
                return tally
        raise AssertionError(f"a try made {MOST_CHANGES} changes")

    def goes_on_after_the_next(self, why: str = "", *, step: int = 1) -> Tally:
        """A try stands still at each of its changes; the next one ends the run, and then the first goes on.

        Args:
            why: why it begins a finished run anew; empty: it is a run's first try.
            step: at each of so many changes.
        """
        tally = Tally(f"{f'{why}, ' if why else ''}stands still at each change, the next one ends the run")
        begins, done, generation = self._anew.get(why, self._first), self._done() if why else None, 2 if why else 1
        for at in range(1, MOST_CHANGES, step):
            scene, order = self._scene(tally, f"change {at}", begins, copy=done)
            with scene.stands_still(replace(order, die_at=at)) as still:
                if still is None:
                    return tally
                manifest = scene.finish(order, said=_SAID[why], generation=generation)
                scene.goes_on(still, over=manifest is not None)
            if manifest is not None:
                scene.still_whole(order, manifest, said=_SAID[why], generation=generation)
            if self._found(tally):
                return tally
        raise AssertionError(f"a try made {MOST_CHANGES} changes")

    def goes_on_beside_the_next(self, rng: Random, *, step: int = 1) -> Tally:
        """The same, but the next one is killed at some change, the first goes on, and a third ends the run."""
        tally = Tally("stands still at each change, the next one is killed")
        for at in range(1, MOST_CHANGES, step):
            scene, order = self._scene(tally, f"change {at}", self._first)
            with scene.stands_still(replace(order, die_at=at)) as still:
                if still is None:
                    return tally
                scene.attempt(replace(order, try_number=2, die_at=rng.randint(1, 70)))
                scene.goes_on(still, over=False)
            scene.finish(replace(order, try_number=2))
        raise AssertionError(f"a try made {MOST_CHANGES} changes")

    def at_each_change_of_the_next(self) -> Tally:
        """The same, of a try that goes on with what one left that was killed half-way."""
        tally = Tally("second try, at each change")
        half = self._half_done()
        for at in range(1, MOST_CHANGES):
            scene, order = self._scene(tally, f"change {at}", self._first, copy=half)
            killed = scene.attempt(replace(order, die_at=at)).killed
            scene.finish(order)
            if not killed or self._found(tally):
                return tally
        raise AssertionError(f"a try made {MOST_CHANGES} changes")

    def at_each_change_of_a_restart(self, why: str) -> Tally:
        """A try that begins a finished run anew, killed likewise: no answer of before may be found among those after.

        Args:
            why: ``on_stale=restart`` or ``rerun=True``.
        """
        tally = Tally(f"{why}, at each change")
        done = self._done()
        for at in range(1, MOST_CHANGES):
            scene, order = self._scene(tally, f"change {at}", self._anew[why], copy=done)
            killed = scene.attempt(replace(order, die_at=at)).killed
            scene.finish(order, said=_SAID[why], generation=2)
            if not killed or self._found(tally):
                return tally
        raise AssertionError(f"a try made {MOST_CHANGES} changes")

    def again_and_again(self, kills: int, rng: Random) -> Tally:
        """Runs whose tries are killed one after the other, at random, with a wall clock that steps."""
        tally = Tally("again and again, at random, clocks stepping")
        while tally.kills < kills:
            scene, order = self._scene(tally, f"run {tally.runs}", self._first)
            for number in range(1, rng.randint(2, 8)):
                clock_seed = rng.randrange(1 << 30)
                torn = rng.random() < 0.3
                at = rng.randint(1, 60)
                scene.attempt(replace(order, die_at=at, torn=torn, clock_seed=clock_seed, try_number=number))
            scene.finish(replace(order, clock_seed=rng.randrange(1 << 30), try_number=9))
        return tally

    def _done(self) -> Order:
        """A finished run."""
        done = self._run("done", self._first)
        if not RunStore(done.uri).list(""):
            Scene(Tally(""), "", lambda: self._stub.counts, RunStore(done.uri)).attempt(done)
        return done

    def _half_done(self) -> Order:
        """A run whose first try was killed when some of its rows were journalled."""
        for die_at in range(30, MOST_CHANGES):
            half, store = self._run(f"half-{die_at}", self._first), RunStore(f"file://{self._folder}/half-{die_at}")
            Scene(Tally(""), "", lambda: self._stub.counts, store).attempt(replace(half, die_at=die_at))
            if store.list(layout.JOURNAL):
                return half
        raise AssertionError("nothing was ever journalled")

    def _found(self, tally: Tally) -> bool:
        """Whether the bug that was put in is found: that is enough."""
        return bool(self._first.plant and tally.broken)

    def _scene(self, tally: Tally, label: str, order: Order, *, copy: Order | None = None) -> tuple[Scene, Order]:
        placed = self._run(str(self._runs), order)
        self._runs += 1
        if copy is not None:
            shutil.copytree(copy.uri.removeprefix("file://"), placed.uri.removeprefix("file://"))
        return Scene(tally, f"{tally.name}, {label}", lambda: self._stub.counts, RunStore(placed.uri)), placed

    def _run(self, name: str, order: Order) -> Order:
        return replace(order, uri=f"file://{self._folder}/{name}")


def systematic(files: Files, rng: Random) -> Iterator[Tally]:
    """Every change there is."""
    yield files.at_each_change(torn=False)
    yield files.at_each_change(torn=True)
    yield files.at_each_change_of_the_next()
    yield files.goes_on_after_the_next()
    yield files.goes_on_beside_the_next(rng)
    yield files.goes_on_after_the_next("rerun=True")
    yield files.goes_on_after_the_next("on_stale=restart")
    yield files.at_each_change_of_a_restart("on_stale=restart")
    yield files.at_each_change_of_a_restart("rerun=True")
