"""What a batch job is: the operator's arguments with every default filled in.

Owns the value and what it may be; the defaults are the operator's. Does not do anything (`execution`) and does not
know Airflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from airflow_llm_provider.core.answers import AnswerRules
from airflow_llm_provider.core.control_law import FIXED, ControlLaw
from airflow_llm_provider.core.redaction import KEEP, Redaction
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from airflow_llm_provider.batch.switch import HoldSwitch
    from airflow_llm_provider.core.identity import RunIdentity
    from airflow_llm_provider.core.prompt import RequestSpec
    from airflow_llm_provider.core.release import Terms
    from airflow_llm_provider.core.request import Status
    from airflow_llm_provider.core.tolerance import Tolerance
    from airflow_llm_provider.endpoint.settings import EndpointSettings
    from airflow_llm_provider.storage.sink import Sink
    from airflow_llm_provider.storage.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What to do; the operator's arguments with every default filled in.

    Attributes:
        identity: whose run it is.
        endpoint: where requests go.
        requests: what they say.
        answers: what is made of what comes back.
        redaction: what is taken out of dead letters and errors.
        model: the model to ask for; None lets the server decide where it serves exactly one.
        source: the rows.
        chunk_rows: rows per part.
        terms: when it may run, and how many requests may be in flight.
        control: what is learned from the servers' load on top of that.
        agreed: the same for people, in JSON values; kept in the manifest.
        switch: the connection's hold switch.
        priority: vLLM's; None: not sent.
        max_attempts: how often a row may fail by itself before it errors.
        tolerance: how many errored rows the run bears.
        on_stale: what to do where a run lies there that was shaped differently.
        rerun: do a finished run again.
        replay: rows of a finished run that are asked for again, by what became of them.
        on_empty: what an input without rows means.
        epoch: equal in all tries of one task instance, different after it is cleared: a rerun happens once per clear.
        try_number: Airflow's, which grows with every try, over clears, too: the newest may write.
        must_exist: an earlier try recorded that it began this run.
        flush_rows: see `Recorder`.
        flush_interval_s: see `Recorder`.
        outage_patience_s: how long the endpoint may give no answer before this try gives up.
        shift: after so long the worker is given back for a moment; None: never.
        fruitless_retries: tries that settle nothing may be followed by so many more in a row; None: Airflow alone
            counts.
        most_rows: of a run that may not have more; None: any number.
        sinks: what results are written as, besides parts.
        progress_interval_s: how often progress is told; None: as often as the `Reporter` does by itself.

    Raises:
        ConfigurationError: when a number is out of its range or a word is none of the known ones.
    """

    identity: RunIdentity
    endpoint: EndpointSettings
    requests: RequestSpec
    model: str | None
    source: Source
    chunk_rows: int
    terms: Terms
    tolerance: Tolerance
    epoch: int
    try_number: int
    agreed: Mapping[str, Any]
    switch: HoldSwitch
    priority: int | None
    max_attempts: int
    on_stale: Literal["fail", "restart"]
    rerun: bool
    on_empty: Literal["succeed", "skip", "fail"]
    must_exist: bool
    flush_rows: int
    flush_interval_s: float
    outage_patience_s: float
    shift: timedelta | None = None
    fruitless_retries: int | None = None
    most_rows: int | None = None
    progress_interval_s: float | None = None
    control: ControlLaw = FIXED
    sinks: tuple[Sink, ...] = ()
    replay: tuple[Status, ...] = ()
    answers: AnswerRules = AnswerRules()  # noqa: RUF009 - it is frozen
    redaction: Redaction = KEEP

    def __post_init__(self) -> None:
        for name in ("chunk_rows", "max_attempts", "flush_rows"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("flush_interval_s", "outage_patience_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name} must be above 0, not {getattr(self, name)}")
        for name, known in (("on_stale", ("fail", "restart")), ("on_empty", ("succeed", "skip", "fail"))):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
