"""From an `LLMBatchOperator`, its connection, the provider configuration and Airflow's context to a `BatchJob`.

Owns who is asked for each value, and the opening lines of the task's log. Does not own a rule: what may be asked for is
`core.terms`', what an argument may be is the operator's and the values' own.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.configuration import AIRFLOW_HOME

from airflow_llm_provider.batch.clock import utc_now
from airflow_llm_provider.batch.job import BatchJob
from airflow_llm_provider.batch.replay import statuses_of
from airflow_llm_provider.batch.switch import HoldSwitch
from airflow_llm_provider.core.effective import Effective, first_set, from_dag
from airflow_llm_provider.core.identity import RunIdentity
from airflow_llm_provider.core.prompt import RequestSpec
from airflow_llm_provider.core.redaction import Redaction
from airflow_llm_provider.core.terms import Agreement, Asked, agree
from airflow_llm_provider.core.tolerance import Tolerance
from airflow_llm_provider.exceptions import ConfigurationError, LLMBatchError
from airflow_llm_provider.hooks.vllm import VLLMHook
from airflow_llm_provider.operators.answering import REPAIR_ATTEMPTS, answer_rules, constraints
from airflow_llm_provider.operators.checkpoint import MOST_ROWS, PROGRESS_INTERVAL_S, xcom_uri
from airflow_llm_provider.operators.context import prompt_context
from airflow_llm_provider.operators.effective import configured
from airflow_llm_provider.operators.paths import result_uri
from airflow_llm_provider.operators.placing import pool_in_flight
from airflow_llm_provider.sinks import check_columns, sinks_of
from airflow_llm_provider.sources import source_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

    from airflow_llm_provider.endpoint.settings import EndpointSettings
    from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
    from airflow_llm_provider.operators.marker import RunMarker
    from airflow_llm_provider.storage.source import Source

log = logging.getLogger(__name__)

CHUNK_ROWS = 1000
FLUSH_ROWS = 100
FLUSH_INTERVAL_S = 2.0
MAX_ATTEMPTS = 5


def asked_by(operator: LLMBatchOperator) -> Asked:
    """What the DAG and the provider configuration ask for."""
    default, set_by = configured("max_in_flight", int)
    return Asked(
        workload=operator.workload,
        placement=operator.placement,
        window=operator.window,
        deadline=_moment(operator.deadline),
        max_in_flight=operator.max_in_flight,
        pool_in_flight=pool_in_flight(operator.pool_slots),
        default_in_flight=default,
        default_set_by="default" if default is None else set_by,
        headroom=operator.headroom,
        priority=_priority(operator.extra_body or {}),
    )


def _moment(deadline: Any) -> str | None:
    """As text; a template may render to nothing, and a DAG may name a datetime."""
    if isinstance(deadline, datetime):
        return deadline.isoformat()
    return str(deadline) if deadline else None


def _priority(extra_body: Mapping[str, Any]) -> int | None:
    priority = extra_body.get("priority")
    if priority is None or (isinstance(priority, int) and not isinstance(priority, bool)):
        return priority
    raise ConfigurationError(f"extra_body: priority must be a whole number, not {priority!r}")


def request_spec(operator: LLMBatchOperator, context: Mapping[str, Any]) -> RequestSpec:
    """What the DAG says of its requests."""
    return RequestSpec(
        endpoint=operator.endpoint,
        prompt=operator.prompt,
        messages=operator.messages,
        system_prompt=operator.system_prompt,
        document=operator.document,
        parameters=_parameters(operator),
        context=context,
        renames_model=bool(operator.model),
    )


def read_job(operator: LLMBatchOperator, context: Context, marker: RunMarker) -> tuple[BatchJob, str]:
    """The job and where its results lie. Logs every value in force and who set it.

    Raises:
        ConfigurationError: when a value cannot be meant, or asks for more than the connection allows.
        RunMissingError: see `RunMarker.expects`.
    """
    ti = context["ti"]
    identity = _identity(operator, ti)
    endpoint = VLLMHook(operator.vllm_conn_id).get_settings()
    agreement = agree(
        asked_by(operator),
        endpoint.promise,
        connection=operator.vllm_conn_id,
        now=utc_now(),
    )
    in_airflow = operator.checkpoint == "xcom"
    sinks = sinks_of(operator.sinks)
    check_columns(sinks, operator.source)
    source = source_of(operator.source, most_rows=MOST_ROWS if in_airflow else None)
    base = first_set("results_base", [configured("results_base", str)], f"file://{AIRFLOW_HOME}/llm_batch")
    uri = xcom_uri(identity) if in_airflow else result_uri(operator.result_path, base=base.value, identity=identity)
    values = {each.name: each for each in _effective(operator, endpoint, agreement, source, (uri, base.set_by))}
    lines = "\n".join(map(str, values.values()))
    log.info("LLM batch for %s, try %d. In force:\n%s", identity, ti.try_number, lines)
    if values["objective"].value is None:
        log.info("No objective is obeyed: real-time's latency is not looked at")
    if operator.fruitless_retries is not None and (operator.retries or 0) <= operator.fruitless_retries:
        log.warning(
            "retries=%d is not more than fruitless_retries=%d, so that the latter never comes to bear",
            *(operator.retries or 0, operator.fruitless_retries),
        )
    if agreement.advice is not None:
        log.warning("%s", agreement.advice)
    job = BatchJob(
        identity=identity,
        endpoint=endpoint,
        requests=request_spec(operator, prompt_context(context, identity)),
        answers=answer_rules(operator),
        redaction=Redaction(operator.redact),
        sinks=tuple(each.open() for each in sinks),
        model=values["model"].value,
        source=source,
        chunk_rows=operator.chunk_rows,
        terms=agreement.terms,
        control=agreement.control,
        agreed={each.name: each.value for each in agreement.values},
        switch=HoldSwitch(lambda: _hold_reason(operator.vllm_conn_id), endpoint.promise.hold),
        priority=agreement.priority,
        max_attempts=MAX_ATTEMPTS,
        tolerance=Tolerance(operator.max_error_rate),
        on_stale=operator.on_stale,
        rerun=operator.rerun,
        replay=statuses_of(operator.replay),
        on_empty=operator.on_empty,
        epoch=ti.max_tries,
        try_number=ti.try_number,
        must_exist=marker.expects(uri, rerun=operator.rerun),
        flush_rows=values["flush_rows"].value,
        flush_interval_s=values["flush_interval_s"].value,
        outage_patience_s=values["outage_patience_s"].value,
        shift=operator.shift,
        fruitless_retries=operator.fruitless_retries,
        most_rows=MOST_ROWS if in_airflow else None,
        progress_interval_s=PROGRESS_INTERVAL_S if in_airflow else None,
    )
    return job, uri


def _identity(operator: LLMBatchOperator, ti: Any) -> RunIdentity:
    """The task instance's, or of all tasks together that share a run."""
    if operator.run_task_id is not None:
        return RunIdentity(dag_id=ti.dag_id, task_id=operator.run_task_id, run_id=ti.run_id)
    map_index = -1 if ti.map_index is None else ti.map_index
    return RunIdentity(dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=map_index)


def unknown_alert_after(operator: LLMBatchOperator) -> timedelta:
    """How long latency may be unreadable before somebody is told; by the connection, or not here where it is away."""
    try:
        latency = VLLMHook(operator.vllm_conn_id).get_settings().latency
    except LLMBatchError:
        latency = None
    return timedelta.max if latency is None else timedelta(seconds=latency.unknown_alert_s)


def _effective(
    operator: LLMBatchOperator,
    endpoint: EndpointSettings,
    agreement: Agreement,
    source: Source,
    results: tuple[str, str],
) -> list[Effective[Any]]:
    """Every value in force. Of rows and headers it tells how many and which, not what is in them."""
    uri, base_set_by = results
    connection = f"connection {operator.vllm_conn_id}"
    patience = (agreement.outage_patience_s, "workload")

    def of_connection(name: str) -> Effective[Any]:
        return Effective(name, getattr(endpoint, name), connection if name in endpoint.given else "default")

    return [
        from_dag("vllm_conn_id", operator.vllm_conn_id, VLLMHook.default_conn_name),
        Effective("base_url", ", ".join(endpoint.base_urls), connection),
        first_set("model", [(operator.model, "DAG"), (endpoint.model, connection)], None),
        Effective("source", str(source), "DAG"),
        from_dag("prompt", operator.prompt, None),
        from_dag("messages", operator.messages, None),
        from_dag("system_prompt", operator.system_prompt, None),
        from_dag("document", operator.document, None),
        *(Effective(name, value, "DAG") for name, value in _parameters(operator).items()),
        from_dag("endpoint", operator.endpoint, "chat"),
        *_answering(operator),
        Effective("result_path", uri, "DAG" if operator.result_path is not None else base_set_by),
        first_set("results_link", [configured("results_link", str)], "{uri}"),
        from_dag("sinks", operator.sinks, ()),
        from_dag("checkpoint", operator.checkpoint, "storage"),
        *agreement.values,
        *_watching(endpoint, agreement, connection),
        Effective("pool", f"{operator.pool}, {operator.pool_slots} slots", "DAG or provider configuration"),
        first_set("requests_per_slot", [configured("requests_per_slot", int)], None),
        Effective("priority_weight", operator.priority_weight, "DAG or workload"),
        from_dag("chunk_rows", operator.chunk_rows, CHUNK_ROWS),
        from_dag("max_error_rate", operator.max_error_rate, 0.1),
        from_dag("on_stale", operator.on_stale, "fail"),
        from_dag("rerun", operator.rerun, default=False),
        from_dag("replay", operator.replay, None),
        from_dag("redact", Redaction(operator.redact).name, None),
        from_dag("on_empty", operator.on_empty, "succeed"),
        from_dag("retries", operator.retries, 3),
        from_dag("fruitless_retries", operator.fruitless_retries, None),
        from_dag("shift", operator.shift, None),
        first_set("flush_rows", [configured("flush_rows", int)], FLUSH_ROWS),
        first_set("flush_interval_s", [configured("flush_interval_s", float)], FLUSH_INTERVAL_S),
        first_set("outage_patience_s", [configured("outage_patience_s", float), patience], agreement.outage_patience_s),
        of_connection("connect_timeout_s"),
        of_connection("request_timeout_s"),
        of_connection("verify"),
        replace(of_connection("extra_headers"), value=sorted(endpoint.extra_headers)),
    ]


def _answering(operator: LLMBatchOperator) -> list[Effective[Any]]:
    """What is wanted of answers, as far as it has an effect."""
    schema = answer_rules(operator).schema
    of_schema: list[Effective[Any]] = [
        Effective("output_schema", "" if schema is None else schema.name, "DAG"),
        from_dag("constrain_output", operator.constrain_output, default=True),
        from_dag("repair_attempts", operator.repair_attempts, REPAIR_ATTEMPTS),
    ]
    return [
        *(of_schema if schema is not None else []),
        from_dag("on_truncated", operator.on_truncated, "report"),
        from_dag("retry_max_tokens", operator.retry_max_tokens, None),
    ]


def _watching(endpoint: EndpointSettings, agreement: Agreement, connection: str) -> list[Effective[Any]]:
    """Where real-time's latency is read, where it is."""
    latency = endpoint.latency
    if latency is None or not agreement.terms.gated:
        return []
    names = ("sampling_period_s", "healthy_for_s", "on_unknown", "unknown_limit", "unknown_alert_s")
    return [
        Effective("latency_source", str(latency.source), connection),
        *(Effective(name, getattr(latency, name), connection) for name in names),
    ]


def _parameters(operator: LLMBatchOperator) -> dict[str, Any]:
    """Body fields of every request; the priority is none of them, since it shapes no answer."""
    named = {
        "temperature": operator.temperature,
        "top_p": operator.top_p,
        "max_tokens": operator.max_tokens,
        "seed": operator.seed,
        "stop": operator.stop,
    }
    given = {name: value for name, value in named.items() if value is not None}
    extra = {name: value for name, value in (operator.extra_body or {}).items() if name != "priority"}
    if twice := given.keys() & extra.keys():
        raise ConfigurationError(f"{', '.join(sorted(twice))}: given as an argument and in extra_body; say it once")
    return {**given, **extra, **constraints(operator)}


def _hold_reason(vllm_conn_id: str) -> str | None:
    return VLLMHook(vllm_conn_id).get_settings().promise.hold
