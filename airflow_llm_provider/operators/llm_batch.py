"""`LLMBatchOperator`: run a prompt over rows against a vLLM endpoint.

Owns the arguments, and mapping what becomes of a try to XCom, deferral, skip or failure. Does not know how the job is
read out of them (`operators.reading`), how a batch is run (`batch.execution`) or when it may run (`core.release`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import Asset, BaseOperator, BaseOperatorLink

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.batch.execution import EmptySourceSkip, run_job
from airflow_llm_provider.batch.gate import RunHeld
from airflow_llm_provider.batch.replay import statuses_of
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.prompt import RequestTemplate
from airflow_llm_provider.core.redaction import Redaction
from airflow_llm_provider.core.release import Cause
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.core.window_text import parse_windows
from airflow_llm_provider.core.workload import Workload
from airflow_llm_provider.exceptions import (
    ConfigurationError,
    EndpointDownError,
    NoRetryError,
    RetryLaterError,
    TooManyErrorsError,
)
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException, AirflowSkipException
from airflow_llm_provider.hooks.vllm import VLLMHook
from airflow_llm_provider.operators.answering import REPAIR_ATTEMPTS, answer_rules
from airflow_llm_provider.operators.checkpoint import check_arguments, hand_over, open_store
from airflow_llm_provider.operators.context import NAMES
from airflow_llm_provider.operators.effective import configured
from airflow_llm_provider.operators.marker import RunMarker
from airflow_llm_provider.operators.metrics import RunMetrics
from airflow_llm_provider.operators.paths import browse_link
from airflow_llm_provider.operators.placing import place, place_mapped
from airflow_llm_provider.operators.reading import (
    CHUNK_ROWS,
    asked_by,
    read_job,
    request_spec,
    unknown_alert_after,
)
from airflow_llm_provider.sinks import sinks_of
from airflow_llm_provider.storage.manifest import for_xcom
from airflow_llm_provider.triggers.release import ReleaseTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial
    from airflow.sdk.types import TaskInstanceKey

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.core.prompt import Endpoint
    from airflow_llm_provider.operators.checkpoint import Checkpoint
    from airflow_llm_provider.storage.store import RunStore


SHORTEST_SHIFT = timedelta(minutes=1)
"""To come back takes some 20 s: 15 in the triggerer, and a new process."""


class ResultsLink(BaseOperatorLink):
    """The task's link to its results."""

    @property
    def name(self) -> str:
        """The button's label."""
        return "Results"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The results' address; Airflow asks on the worker, when the task has ended."""
        del ti_key
        return getattr(operator, "results_link", "")


class LLMBatchOperator(BaseOperator):
    """Runs a prompt over rows and lands one result line per row, exactly once.

    A try that is interrupted, in whatever way, is resumed by the next one: what was answered is not asked again.
    Results lie in ``part-*.jsonl`` below `result_path`; the XCom is the manifest (`docs/run-format.md`).

    Args:
        source: files (a path or glob, a list of them, `sources.Files`, an Asset), a query (`sources.Query`), or rows: a
            list of objects, usually an upstream task's output. See `docs/sources.md`. Rows of OpenAI's batch shape
            (``custom_id``, ``method``, ``url``, ``body``) need no prompt. Templated.
        prompt: Jinja template of the user message, rendered per row with ``row`` in a sandbox; no Airflow template.
            It also knows ``params``, ``run_id``, ``dag_id``, ``task_id``, ``map_index`` and the run's dates as ISO 8601
            texts: ``run_after``, and where the run has them ``ds``, ``ts``, ``logical_date``,
            ``data_interval_start`` and ``data_interval_end``.
        messages: instead of `prompt`, whole chat messages whose texts, in parts of a content too, are such templates.
        system_prompt: template of a system message put first.
        document: template of the text that `prompt` is scored against, with ``endpoint="score"``.
        vllm_conn_id: the connection of type ``vllm``. Templated.
        model: the model to ask for; the connection's by default, else the only one the endpoint serves. Rows of
            OpenAI's batch shape name their own, which this one replaces. Templated.
        endpoint: ``chat``, ``completions``, or, with the answer's value as ``parsed``, ``embeddings``, ``classify`` or
            ``score``.
        temperature: sampling temperature.
        top_p: nucleus sampling.
        max_tokens: completion tokens at most.
        seed: sampling seed.
        stop: text or texts that end an answer.
        extra_body: further body fields, such as ``top_k`` or ``chat_template_kwargs``; sent as they are.
        output_schema: what answers must be: a JSON schema, or a type that pydantic validates, such as a model. Each
            answer is validated; the value is the result line's ``parsed``. See `docs/structured-output.md`.
        constrain_output: whether the server is asked to keep to the schema while it generates (``response_format``).
        repair_attempts: how often an answer that is not valid is shown to the model, with what is wrong; then the row
            lands as ``invalid_output``.
        retry_max_tokens: where an answer was cut off at `max_tokens`, it is asked for again with so many.
        on_truncated: ``report`` lands a text that is cut off as ``truncated``, ``accept`` as a success.
        result_path: where results lie: a URI, a local path, or a path below the configured base. Two runs cannot share
            one. By default the configured base, then DAG, task, run and map index. Templated.
        sinks: what results are written as besides JSON lines, once all have landed: `sinks.Parquet`,
            `sinks.OpenAIBatch`, or both. See `docs/sinks.md`.
        checkpoint: ``storage``, or ``xcom`` for a small run that is kept in Airflow itself and whose results are an
            XCom of the key ``results``.
        chunk_rows: rows per part.
        max_in_flight: requests in flight at most, whatever the server's load leaves; by default what the connection's
            slots allow, else the provider configuration's.
        max_error_rate: share of rows that may error before the task fails; one may in any case, unless it is 0.
        on_stale: ``fail`` or ``restart``, where a run lies there whose prompt, parameters, model or input differed.
        rerun: do a finished run again when its task is cleared; unfinished runs are resumed either way.
        replay: ``errored``, ``invalid_output`` or ``truncated``, or some of them: rows of a finished run that ended so
            are asked for again when its task is cleared, by the DAG as it is then; all others stay. Once per clear.
        redact: a function from text to text, called with each text of a dead letter's request and of an error before it
            is kept or logged; results are kept as they are. See `docs/security.md`.
        on_empty: ``succeed``, ``skip`` or ``fail`` where the input has no rows. No file at all is always an error.
        workload: ``scheduled-batch`` or ``burst-batch``; what follows from it stands in `docs/workloads.md`.
        placement: ``dedicated``, ``shared`` or ``time-shifted``: the connection's by default, and never freer than it.
        window: when it may run, such as ``23:00-07:00 Europe/London mon-fri``; by default the connection's, else what
            follows from the placement. Never wider than the connection's.
        deadline: of ``burst-batch``, when the results are wanted, ISO 8601 with its zone: where the platform allows it,
            the window is left for a run that would miss it otherwise. Templated.
        headroom: sequences always left free for real-time, by default the connection's; what more it needs is learned.
        on_unknown_callback: called with the context, as Airflow's own callbacks and notifiers are, when real-time's
            latency has been unreadable for the connection's `unknown_alert_s`. Without one, the try fails then.
        shift: after so long the worker is given back and the task takes its turn again, resuming from what it has
            settled: on workers that come and go, so that none of them is needed, or waited for, all night.
        fruitless_retries: so many tries in a row that settle no row may be followed by another one, and no more; then
            give `retries` generously: a killed worker spends one of those, whatever the try had settled. An endpoint
            that goes away under a try that has settled rows spends none.
        pool: Airflow's; by default the one that the provider configuration names for the workload.
        pool_slots: slots of the pool; where the provider configuration says `requests_per_slot`, they cap the requests
            in flight.
        priority_weight: Airflow's; the workload's by default.
        weight_rule: Airflow's, but ``absolute`` by default.
        retries: as any operator's, but 3 by default: a retry is how a run survives its worker.
        **kwargs: as for any operator.

    Raises:
        ConfigurationError: when the arguments contradict each other; Airflow shows it as a DAG import error.
    """

    template_fields: Sequence[str] = ("source", "result_path", "vllm_conn_id", "model", "deadline")
    ui_color = "#e8f4ea"
    run_task_id: str | None = None
    """The id that the run goes by; None: the task's own. Tasks that share a run go by their group's."""
    operator_extra_links = (ResultsLink(),)

    def __init__(
        self,
        *,
        source: Any,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system_prompt: str | None = None,
        document: str | None = None,
        vllm_conn_id: str = VLLMHook.default_conn_name,
        model: str | None = None,
        endpoint: Endpoint = "chat",
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        output_schema: Any = None,
        constrain_output: bool = True,
        repair_attempts: int = REPAIR_ATTEMPTS,
        retry_max_tokens: int | None = None,
        on_truncated: Literal["report", "accept"] = "report",
        result_path: str | None = None,
        sinks: Any = (),
        checkpoint: Checkpoint = "storage",
        chunk_rows: int = CHUNK_ROWS,
        max_in_flight: int | None = None,
        max_error_rate: float = 0.1,
        on_stale: Literal["fail", "restart"] = "fail",
        rerun: bool = False,
        replay: str | Sequence[str] | None = None,
        redact: Callable[[str], str] | None = None,
        on_empty: Literal["succeed", "skip", "fail"] = "succeed",
        workload: str = Workload.SCHEDULED_BATCH,
        placement: str | None = None,
        window: str | None = None,
        deadline: str | None = None,
        headroom: int | None = None,
        on_unknown_callback: Callable[[Any], Any] | Sequence[Callable[[Any], Any]] | None = None,
        shift: timedelta | None = None,
        fruitless_retries: int | None = None,
        pool: str | None = None,  # from here on, what `partial` must tell the scheduler: see `operators.placing`
        pool_slots: int = 1,
        priority_weight: int | None = None,
        weight_rule: Any = None,
        retries: int = 3,
        **kwargs: Any,
    ) -> None:
        placed = place(
            workload=workload,
            placement=placement,
            pool=pool,
            pool_slots=pool_slots,
            priority_weight=priority_weight,
            weight_rule=weight_rule,
        )
        super().__init__(retries=retries, **placed, **kwargs)
        self.source = source
        if isinstance(source, Asset):
            self.inlets = [*self.inlets, source]
        self.prompt = prompt
        self.messages = messages
        self.system_prompt = system_prompt
        self.document = document
        self.vllm_conn_id = vllm_conn_id
        self.model = model
        self.endpoint = endpoint
        self.temperature = temperature
        self.top_p = top_p
        self.max_tokens = max_tokens
        self.seed = seed
        self.stop = stop
        self.extra_body = extra_body
        self.output_schema = output_schema
        self.constrain_output = constrain_output
        self.repair_attempts = repair_attempts
        self.retry_max_tokens = retry_max_tokens
        self.on_truncated = on_truncated
        self.result_path = result_path
        self.sinks = sinks
        self.checkpoint = checkpoint
        self.chunk_rows = chunk_rows
        self.max_in_flight = max_in_flight
        self.max_error_rate = max_error_rate
        self.on_stale = on_stale
        self.rerun = rerun
        self.replay = replay
        self.redact = redact
        self.on_empty = on_empty
        self.workload = workload
        self.placement = placement
        self.window = window
        self.deadline = deadline
        self.headroom = headroom
        self.on_unknown_callback = on_unknown_callback
        self.shift = shift
        self.fruitless_retries = fruitless_retries
        self.results_link = ""
        self._check_arguments()

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """As any operator's, with a plain task's defaults: Airflow's own would not see them."""
        mapped = super().partial(**kwargs)
        place_mapped(cls, mapped.kwargs, given=kwargs, dag=mapped.kwargs["dag"], task_group=mapped.kwargs["task_group"])
        return mapped

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the batch, or as much of it as may run now: then wait in the triggerer, and come back through `resume`.

        Raises:
            AirflowSkipException: the input has no rows and `on_empty` is ``skip``.
            AirflowFailException: no retry would mend it; the message says what to change.
            AirflowException: the next try goes on from here.
        """
        outcome = self._attempt(context)
        if isinstance(outcome, ReleaseTrigger):
            self.log.info("Waiting in the triggerer, without a worker or a pool slot; what has settled is kept")
            self.defer(trigger=outcome, method_name="resume")
        return outcome

    def _attempt(self, context: Context) -> dict[str, Any] | ReleaseTrigger:
        self._switch = StopSwitch()
        try:
            return self._run(context, self._switch)
        except RunHeld as held:
            return self._waiting(context, held)
        except EmptySourceSkip as skip:
            raise AirflowSkipException(str(skip)) from None
        except NoRetryError as error:
            raise AirflowFailException(f"{type(error).__name__}: {error}") from None  # its words are for people
        except EndpointDownError as error:
            if self.fruitless_retries is None or not error.settled:
                raise AirflowException(f"{type(error).__name__}: {error}") from error
            self.log.warning("%s. This try has settled %s rows and spends no retry", error, f"{error.settled:,}")
            return self._trigger(not_before=(utc_now() + self.retry_delay).isoformat())
        except RetryLaterError as error:
            raise AirflowException(f"{type(error).__name__}: {error}") from error

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on when the trigger says so; the run itself is found where it lies, as by any other try.

        Raises:
            AirflowFailException: waiting on makes no sense.
            AirflowException: nobody knows how real-time does, for too long, and nobody else is told.
        """
        if event["event"] == "error":
            raise AirflowFailException(str(event["reason"]))
        if event["event"] == "lost":
            raise AirflowException(str(event["reason"]))
        if event["event"] == "unknown":
            self._alert(context, since=event["since"], reason=event["reason"])
            trigger = self._trigger(
                remaining_s=event["remaining_s"],
                recovering=True,
                unknown_since=event["since"],
                alerted=True,
            )
            self.defer(trigger=trigger, method_name="resume")
        self._unknown = (event.get("unknown_since"), bool(event.get("alerted")))
        return self.execute(context)

    def _waiting(self, context: Context, held: RunHeld) -> ReleaseTrigger:
        since, alerted = None, False
        if held.hold.cause is Cause.UNKNOWN:
            since, alerted = (None, False) if held.released else getattr(self, "_unknown", (None, False))
            since = since or utc_now().isoformat()
            if not alerted and utc_now() - datetime.fromisoformat(since) >= unknown_alert_after(self):
                self._alert(context, since=since, reason=held.hold.reason)  # the triggerer may well read what we cannot
                alerted = True
        return self._trigger(
            remaining_s=held.remaining_s,
            recovering=held.hold.cause in (Cause.UNKNOWN, Cause.OBJECTIVE),
            not_before=held.drained_until.isoformat() if held.drained_until is not None else None,
            unknown_since=since,
            alerted=alerted,
        )

    def _trigger(self, **waits: Any) -> ReleaseTrigger:
        return ReleaseTrigger(vllm_conn_id=self.vllm_conn_id, asked=asked_by(self).as_dict(), **waits)

    def _alert(self, context: Context, *, since: str, reason: str) -> None:
        """Say that nobody knows how real-time does: a broken metric must not be a silent night."""
        words = f"Batch has been held since {since}, and nobody knows how real-time does: {reason}"
        self.log.error(words)
        callbacks = self.on_unknown_callback
        if not callbacks:
            raise AirflowException(f"{words}. Mend the latency source, or set on_unknown_callback to be told otherwise")
        for callback in callbacks if isinstance(callbacks, Sequence) else [callbacks]:
            callback({**context, "reason": words})

    def on_kill(self) -> None:
        """SIGTERM, mark failed, execution timeout: journal what has settled, free the server's slots, and end."""
        switch: StopSwitch | None = getattr(self, "_switch", None)
        if switch is not None:
            switch.set("Stopped from outside")

    def _run(self, context: Context, switch: StopSwitch) -> dict[str, Any]:
        job, store, begun = self._read(context)
        try:
            manifest = run_job(job, store, switch, begun=begun, told=RunMetrics(context))
        except TooManyErrorsError:
            self._hand_over(store, context)
            raise
        self._hand_over(store, context)
        return for_xcom(manifest)

    def _hand_over(self, store: RunStore, context: Context) -> None:
        if self.checkpoint == "xcom":
            hand_over(store, context)

    def _read(self, context: Context) -> tuple[BatchJob, RunStore, Callable[[], None]]:
        """The job, where its run lies, and what is called when that is begun."""
        marker = RunMarker(context)
        job, uri = read_job(self, context, marker)
        store = open_store(uri, context)  # refuses a scheme that nothing serves, before anybody is given it as a link
        if self.checkpoint != "xcom":
            self.results_link = browse_link(uri, configured("results_link", str)[0] or "")
        return job, store, lambda: marker.set(uri)

    def _check_arguments(self) -> None:
        """Refuse at parse time what could never run; values that come from other tasks are looked at in `execute`."""
        RequestTemplate(request_spec(self, dict.fromkeys(NAMES)), model="")
        answer_rules(self)
        Redaction(self.redact)
        if statuses_of(self.replay) and self.rerun:
            raise ConfigurationError(
                "replay and rerun: one does some rows of a finished run again, the other all of them"
            )
        if self.replay is not None and self.checkpoint == "xcom":
            raise ConfigurationError(
                "replay: a run with checkpoint='xcom' is small: set rerun=True, which does all rows"
            )
        if sinks_of(self.sinks) and self.checkpoint == "xcom":
            raise ConfigurationError(
                "sinks: a run with checkpoint='xcom' has no folder to write them to; leave one out"
            )
        Tolerance(self.max_error_rate)
        check_arguments(self.checkpoint, result_path=self.result_path, chunk_rows=self.chunk_rows)
        if self.window is not None:
            parse_windows(self.window)
        asked_by(self)
        if self.shift is not None and not (isinstance(self.shift, timedelta) and self.shift >= SHORTEST_SHIFT):
            raise ConfigurationError(f"shift must be a timedelta of {SHORTEST_SHIFT} or more, not {self.shift!r}")
        wholes = (("chunk_rows", 1), ("max_in_flight", 1), ("headroom", 0), ("fruitless_retries", 0))
        for name, least in wholes:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ConfigurationError(f"{name} must be a whole number of {least} or more, not {value!r}")
