"""`LLMBatchOperator`: run a prompt over rows against a vLLM endpoint.

Owns reading Airflow (arguments, connection, configuration, context) into a `BatchJob`, and mapping what comes back to
XCom, skip or failure. Does not know how a batch is run: `batch.execution` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk import BaseOperator, BaseOperatorLink

from airflow_llm_provider.batch.execution import EmptySourceSkip, run_job
from airflow_llm_provider.batch.job import BatchJob
from airflow_llm_provider.batch.stop import StopSwitch
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.prompt import RequestSpec, RequestTemplate
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.core.workload import POLICIES, Placement, Workload, batch_workload, placement_of
from airflow_llm_provider.exceptions import ConfigurationError, NoRetryError, RetryLaterError
from airflow_llm_provider.hooks.compat import AirflowException, AirflowFailException, AirflowSkipException
from airflow_llm_provider.hooks.vllm import VLLMHook
from airflow_llm_provider.operators.context import NAMES, prompt_context
from airflow_llm_provider.operators.effective import Effective, configured, first_set, from_dag
from airflow_llm_provider.operators.marker import RunMarker
from airflow_llm_provider.operators.paths import browse_link, result_uri
from airflow_llm_provider.operators.placing import place, place_mapped
from airflow_llm_provider.storage.jsonl import JsonlSource
from airflow_llm_provider.storage.manifest import for_xcom
from airflow_llm_provider.storage.source import ListSource
from airflow_llm_provider.storage.store import RunStore

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial
    from airflow.sdk.types import TaskInstanceKey

    from airflow_llm_provider.core.prompt import Endpoint
    from airflow_llm_provider.endpoint.settings import EndpointSettings
    from airflow_llm_provider.storage.source import Source

CHUNK_ROWS = 1000
MAX_IN_FLIGHT = 64
FLUSH_ROWS = 100
FLUSH_INTERVAL_S = 2.0


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
        source: JSONL files (a path or glob, or a list of them), or rows: a list of objects, usually an upstream task's
            output. Rows of OpenAI's batch shape (``custom_id``, ``method``, ``url``, ``body``) need no prompt.
            Templated.
        prompt: Jinja template of the user message, rendered per row with ``row`` in a sandbox; no Airflow template.
            It also knows ``params``, ``run_id``, ``dag_id``, ``task_id``, ``map_index`` and the run's dates as ISO 8601
            texts: ``run_after``, and where the run has them ``ds``, ``ts``, ``logical_date``,
            ``data_interval_start`` and ``data_interval_end``.
        messages: instead of `prompt`, whole chat messages whose texts are such templates.
        system_prompt: template of a system message put first.
        vllm_conn_id: the connection of type ``vllm``. Templated.
        model: the model to ask for; the connection's by default, else the only one the endpoint serves. Templated.
        endpoint: ``chat`` or ``completions``.
        temperature: sampling temperature.
        top_p: nucleus sampling.
        max_tokens: completion tokens at most.
        seed: sampling seed.
        stop: text or texts that end an answer.
        extra_body: further body fields, such as ``top_k`` or ``chat_template_kwargs``; sent as they are.
        result_path: where results lie: a URI, a local path, or a path below the configured base. Two runs cannot share
            one. By default the configured base, then DAG, task, run and map index. Templated.
        chunk_rows: rows per part.
        max_in_flight: requests in flight at most; by default the connection's slots, else the provider configuration's.
        max_error_rate: share of rows that may error before the task fails; one may in any case, unless it is 0.
        on_stale: ``fail`` or ``restart``, where a run lies there whose prompt, parameters, model or input differed.
        rerun: do a finished run again when its task is cleared; unfinished runs are resumed either way.
        on_empty: ``succeed``, ``skip`` or ``fail`` where the input has no rows. No file at all is always an error.
        workload: ``scheduled-batch`` or ``burst-batch``; what follows from it stands in `docs/workloads.md`.
        placement: ``dedicated``, ``shared`` or ``time-shifted``: the connection's by default, and never freer than it.
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

    template_fields: Sequence[str] = ("source", "result_path", "vllm_conn_id", "model")
    ui_color = "#e8f4ea"
    operator_extra_links = (ResultsLink(),)

    def __init__(
        self,
        *,
        source: Any,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system_prompt: str | None = None,
        vllm_conn_id: str = VLLMHook.default_conn_name,
        model: str | None = None,
        endpoint: Endpoint = "chat",
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        result_path: str | None = None,
        chunk_rows: int = CHUNK_ROWS,
        max_in_flight: int | None = None,
        max_error_rate: float = 0.1,
        on_stale: Literal["fail", "restart"] = "fail",
        rerun: bool = False,
        on_empty: Literal["succeed", "skip", "fail"] = "succeed",
        workload: str = Workload.SCHEDULED_BATCH,
        placement: str | None = None,
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
        self.prompt = prompt
        self.messages = messages
        self.system_prompt = system_prompt
        self.vllm_conn_id = vllm_conn_id
        self.model = model
        self.endpoint = endpoint
        self.temperature = temperature
        self.top_p = top_p
        self.max_tokens = max_tokens
        self.seed = seed
        self.stop = stop
        self.extra_body = extra_body
        self.result_path = result_path
        self.chunk_rows = chunk_rows
        self.max_in_flight = max_in_flight
        self.max_error_rate = max_error_rate
        self.on_stale = on_stale
        self.rerun = rerun
        self.on_empty = on_empty
        self.workload = workload
        self.placement = placement
        self.results_link = ""
        self._check_arguments()

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """As any operator's, with a plain task's defaults: Airflow's own would not see them."""
        mapped = super().partial(**kwargs)
        place_mapped(cls, mapped.kwargs, given=kwargs, dag=mapped.kwargs["dag"], task_group=mapped.kwargs["task_group"])
        return mapped

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the batch.

        Raises:
            AirflowSkipException: the input has no rows and `on_empty` is ``skip``.
            AirflowFailException: no retry would mend it; the message says what to change.
            AirflowException: the next try goes on from here.
        """
        self._switch = StopSwitch()
        try:
            return for_xcom(self._run(context, self._switch))
        except EmptySourceSkip as skip:
            raise AirflowSkipException(str(skip)) from None
        except NoRetryError as error:
            raise AirflowFailException(f"{type(error).__name__}: {error}") from None  # its words are for people
        except RetryLaterError as error:
            raise AirflowException(f"{type(error).__name__}: {error}") from error

    def on_kill(self) -> None:
        """SIGTERM, mark failed, execution timeout: journal what has settled, free the server's slots, and end."""
        switch: StopSwitch | None = getattr(self, "_switch", None)
        if switch is not None:
            switch.set("Stopped from outside")

    def _run(self, context: Context, switch: StopSwitch) -> dict[str, Any]:
        ti = context["ti"]
        identity = RunIdentity(
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            map_index=-1 if ti.map_index is None else ti.map_index,
        )
        endpoint = VLLMHook(self.vllm_conn_id).get_settings()
        base = first_set("results_base", [configured("results_base", str)], f"file://{AIRFLOW_HOME}/llm_batch")
        uri = result_uri(self.result_path, base=base.value, identity=identity)
        effective = self._effective(endpoint, uri, base)
        self.log.info(
            "LLM batch for %s, try %d. In force:\n%s", identity, ti.try_number, "\n".join(map(str, effective.values()))
        )
        if len(endpoint.base_urls) > 1:
            self.log.warning(
                "The connection names several base URLs; only the first, %s, is used", endpoint.base_urls[0]
            )
        self.results_link = browse_link(uri, configured("results_link", str)[0] or "")
        marker = RunMarker(context)
        job = BatchJob(
            identity=identity,
            endpoint=endpoint,
            requests=self._request_spec(prompt_context(context)),
            model=effective["model"].value,
            source=self._source(),
            chunk_rows=self.chunk_rows,
            max_in_flight=effective["max_in_flight"].value,
            tolerance=Tolerance(self.max_error_rate),
            on_stale=self.on_stale,
            rerun=self.rerun,
            on_empty=self.on_empty,
            epoch=ti.max_tries,
            must_exist=marker.expects(uri, rerun=self.rerun),
            flush_rows=effective["flush_rows"].value,
            flush_interval_s=effective["flush_interval_s"].value,
            outage_patience_s=effective["outage_patience_s"].value,
        )
        return run_job(job, RunStore(uri), switch, begun=lambda: marker.set(uri))

    def _effective(self, endpoint: EndpointSettings, uri: str, base: Effective[str]) -> dict[str, Effective[Any]]:
        connection = f"connection {self.vllm_conn_id}"
        policy = POLICIES[batch_workload(self.workload), placement_of(self.placement or Placement.DEDICATED)]
        values: list[Effective[Any]] = [
            from_dag("vllm_conn_id", self.vllm_conn_id, VLLMHook.default_conn_name),
            Effective("base_url", endpoint.base_urls[0], connection),
            first_set("model", [(self.model, "DAG"), (endpoint.model, connection)], None),
            *(Effective(name, value, "DAG") for name, value in self._parameters().items()),
            from_dag("endpoint", self.endpoint, "chat"),
            Effective("result_path", uri, "DAG" if self.result_path is not None else base.set_by),
            from_dag("chunk_rows", self.chunk_rows, CHUNK_ROWS),
            first_set(
                "max_in_flight",
                [
                    (self.max_in_flight, "DAG"),
                    (endpoint.slots, f"{connection} (slots)"),
                    configured("max_in_flight", int),
                ],
                MAX_IN_FLIGHT,
            ),
            from_dag("max_error_rate", self.max_error_rate, 0.1),
            from_dag("on_stale", self.on_stale, "fail"),
            from_dag("rerun", self.rerun, default=False),
            from_dag("on_empty", self.on_empty, "succeed"),
            from_dag("retries", self.retries, 3),
            first_set("flush_rows", [configured("flush_rows", int)], FLUSH_ROWS),
            first_set("flush_interval_s", [configured("flush_interval_s", float)], FLUSH_INTERVAL_S),
            first_set(
                "outage_patience_s",
                [configured("outage_patience_s", float), (policy.outage_patience_s, f"workload {self.workload}")],
                policy.outage_patience_s,
            ),
            Effective("request_timeout_s", endpoint.request_timeout_s, connection),
        ]
        return {value.name: value for value in values}

    def _parameters(self) -> dict[str, Any]:
        named = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "stop": self.stop,
        }
        given = {name: value for name, value in named.items() if value is not None}
        if twice := given.keys() & (self.extra_body or {}).keys():
            raise ConfigurationError(f"{', '.join(sorted(twice))}: given as an argument and in extra_body; say it once")
        return {**given, **(self.extra_body or {})}

    def _request_spec(self, context: Mapping[str, Any]) -> RequestSpec:
        return RequestSpec(
            endpoint=self.endpoint,
            prompt=self.prompt,
            messages=self.messages,
            system_prompt=self.system_prompt,
            parameters=self._parameters(),
            context=context,
        )

    def _source(self) -> Source:
        source = self.source
        if isinstance(source, str) or hasattr(source, "__fspath__"):
            return JsonlSource([str(source)])
        if isinstance(source, Sequence) and source and all(isinstance(item, str) for item in source):
            return JsonlSource(source)
        if isinstance(source, Sequence):
            return ListSource(source)
        raise ConfigurationError(
            f"source is a {type(source).__name__}; give a path or glob of JSONL files, a list of them, or rows"
        )

    def _check_arguments(self) -> None:
        """Refuse at parse time what could never run; values that come from other tasks are looked at in `execute`."""
        RequestTemplate(self._request_spec(dict.fromkeys(NAMES)), model="")
        Tolerance(self.max_error_rate)
        for name in ("chunk_rows", "max_in_flight"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigurationError(f"{name} must be a whole number of 1 or more, not {value!r}")
