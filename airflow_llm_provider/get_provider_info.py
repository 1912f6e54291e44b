"""What Airflow is told about this package, as plain data.

Owns the names Airflow discovers us by, the connection form's fields and the provider configuration's options.
Imports nothing: Airflow reads it in every process, long before anybody runs a batch.
"""

from __future__ import annotations

from typing import Any

_INTEGRATION = "vLLM"

_CONN_FIELDS: dict[str, Any] = {
    "model": {
        "label": "Model",
        "description": "The served model's name. Empty: a server that serves exactly one is asked for that one.",
        "schema": {"type": ["string", "null"]},
    },
    "slots": {
        "label": "Slots",
        "description": "The server's --max-num-seqs, times --data-parallel-size: how many sequences it runs at once. "
        "Where real-time is served, batch needs it to tell what is free.",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "extra_headers": {
        "label": "Extra headers",
        "description": 'A JSON object sent with every request, e.g. {"X-Tenant": "summaries"}.',
        "schema": {"type": ["object", "null"]},
    },
    "verify": {
        "label": "Verify TLS",
        "description": "true (also when empty), false, or the absolute path of a CA bundle.",
        "schema": {"type": ["string", "null"]},
    },
    "connect_timeout_s": {
        "label": "Connect timeout (s)",
        "description": "Seconds to open a connection. Empty: 10.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    "request_timeout_s": {
        "label": "Request timeout (s)",
        "description": "Seconds for a whole request, queueing in the server included. Empty: 3600.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    "placement": {
        "label": "Placement",
        "description": "dedicated, shared or time-shifted: whose GPUs these are. A DAG may ask for a stricter one.",
        "schema": {"type": ["string", "null"]},
    },
    "window": {
        "label": "Window",
        "description": "When batch may run, e.g. 23:00-07:00 Europe/London mon-fri. A DAG may ask for a narrower one.",
        "schema": {"type": ["string", "null"]},
    },
    "max_in_flight": {
        "label": "Requests in flight",
        "description": "At most, for each batch task.",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "headroom": {
        "label": "Headroom",
        "description": "Sequences of the slots that batch always leaves free; what real-time needs beyond, it learns.",
        "schema": {"type": ["integer", "null"], "minimum": 0},
    },
    "priority": {
        "label": "vLLM priority",
        "description": "The most urgent that batch may ask for; lower runs earlier. Empty: what the workload says.",
        "schema": {"type": ["integer", "null"]},
    },
    "early_for_deadline": {
        "label": "Early for a deadline",
        "description": "true: a burst that would miss its deadline inside the window may run outside it.",
        "schema": {"type": ["string", "null"]},
    },
    "hold": {
        "label": "Hold switch",
        "description": "true, or the reason in words: batch stops within 10 s and waits until this is empty again.",
        "schema": {"type": ["string", "null"]},
    },
    "objective": {
        "label": "Objective",
        "description": "What real-time was promised, e.g. ttft p95 < 2 s; itl p99 < 100 ms; e2e p99 < 10 s. "
        "Empty: latency is no gate.",
        "schema": {"type": ["string", "null"]},
    },
    "latency_source": {
        "label": "Latency source",
        "description": "prometheus, vllm or canary: where it is read whether the objective is kept.",
        "schema": {"type": ["string", "null"]},
    },
    "sampling_period_s": {
        "label": "Sampling period (s)",
        "description": "How far back a reading looks. Empty: 30.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    "healthy_for_s": {
        "label": "Healthy for (s)",
        "description": "How long real-time must be well again before waiting batch is released. Empty: 60.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    "prometheus_url": {
        "label": "Prometheus URL",
        "description": "e.g. http://prometheus:9090, where it asks for no login. See the next field otherwise.",
        "schema": {"type": ["string", "null"]},
    },
    "prometheus_conn_id": {
        "label": "Prometheus connection",
        "description": "The id of a connection of type http to Prometheus: host, login, password, headers as extra.",
        "schema": {"type": ["string", "null"]},
    },
    "prometheus_query": {
        "label": "Prometheus query",
        "description": "PromQL whose value is the quantile in seconds; {quantile}, {period} and, in quotes, {server} "
        'are filled in. For several metrics an object such as {"ttft": "…", "itl": "…"}.',
        "schema": {"type": ["string", "null"]},
    },
    "only_batch_client": {
        "label": "Only batch client",
        "description": "true: never more than one task sends batch work here. The source vllm needs it to be so.",
        "schema": {"type": ["string", "null"]},
    },
    "canary_priority": {
        "label": "Canary priority",
        "description": "vLLM priority of canaries: real-time's. Empty: 0.",
        "schema": {"type": ["integer", "null"]},
    },
    "on_unknown": {
        "label": "On unknown latency",
        "description": "hold (also when empty), or cap: run with few requests in flight.",
        "schema": {"type": ["string", "null"]},
    },
    "unknown_limit": {
        "label": "In flight when unknown",
        "description": "At most so many with cap. Empty: 1.",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "unknown_alert_s": {
        "label": "Alert on unknown (s)",
        "description": "Somebody is told when unknown latency has held batch for so long. Empty: 1800.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
}

_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema", "login"],
    "relabeling": {"host": "Base URL(s)", "password": "API key"},
    "placeholders": {
        "host": "http://gpu1:8000 (several: commas between them)",
        "port": "empty, unless the base URL is a bare host name",
        "password": "empty, if the server asks for none",
    },
}

_CONFIG: dict[str, Any] = {
    "llm_batch": {
        "description": "Batch work on an LLM endpoint.",
        "options": {
            "results_base": {
                "description": "Where runs land whose task names no result_path. "
                "Empty means file://{AIRFLOW_HOME}/llm_batch, which only one machine sees.",
                "type": "string",
                "example": "s3://company-llm-results/airflow",
                "default": "",
                "version_added": "0.1.0",
            },
            "results_link": {
                "description": "Address of the task's link to its results, with {uri}, {scheme}, {bucket} and {key} "
                "filled in from the result path. Empty means the URI itself.",
                "type": "string",
                "example": "https://console.example.com/browse/{bucket}/{key}",
                "default": "",
                "version_added": "0.1.0",
            },
            "max_in_flight": {
                "description": "Requests in flight per task, at most, where neither the DAG nor the connection says. "
                "Empty means 64, and where the task finds out by itself what its server holds, 1,024 for each server.",
                "type": "integer",
                "example": "128",
                "default": "",
                "version_added": "0.1.0",
            },
            "pool_scheduled_batch": {
                "description": "The Airflow pool of scheduled-batch tasks whose DAG names none. "
                "It must exist: a task in a missing pool never starts. Empty means default_pool.",
                "type": "string",
                "example": "llm_scheduled_batch",
                "default": "",
                "version_added": "0.1.0",
            },
            "pool_burst_batch": {
                "description": "The Airflow pool of burst-batch tasks whose DAG names none. "
                "It must exist: a task in a missing pool never starts. Empty means default_pool.",
                "type": "string",
                "example": "llm_burst_batch",
                "default": "",
                "version_added": "0.1.0",
            },
            "requests_per_slot": {
                "description": "Requests in flight that one slot of a pool stands for: a task has at most its "
                "pool_slots times as many. Empty means that slots do not cap them.",
                "type": "integer",
                "example": "16",
                "default": "",
                "version_added": "0.1.0",
            },
            "flush_interval_s": {
                "description": "Seconds after which settled rows are journalled in a try's first minute. It grows with "
                "the root of the try's age, to 7.5 times as long.",
                "type": "float",
                "example": "5.0",
                "default": "2.0",
                "version_added": "0.1.0",
            },
            "flush_rows": {
                "description": "Settled rows after which they are journalled sooner, but not within "
                "2 s of the last time.",
                "type": "integer",
                "example": "500",
                "default": "100",
                "version_added": "0.1.0",
            },
            "outage_patience_s": {
                "description": "Seconds a try waits for an endpoint that is down or without capacity, "
                "before it leaves the rest to the next try. Empty means as long as suits the task's workload.",
                "type": "float",
                "example": "900",
                "default": "",
                "version_added": "0.1.0",
            },
        },
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata in the shape of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-llm-provider",
        "name": "LLM batch on vLLM",
        "description": "Run LLM batch work on self-hosted vLLM: resumable, landed once, beside real-time traffic.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://docs.vllm.ai/",
                "tags": ["software"],
            }
        ],
        "hooks": [{"integration-name": _INTEGRATION, "python-modules": ["airflow_llm_provider.hooks.vllm"]}],
        "operators": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_llm_provider.operators.llm_batch"]}
        ],
        "task-decorators": [
            {"name": "vllm_batch", "class-name": "airflow_llm_provider.decorators.vllm_batch.vllm_batch_task"}
        ],
        "sensors": [{"integration-name": _INTEGRATION, "python-modules": ["airflow_llm_provider.sensors.release"]}],
        "triggers": [{"integration-name": _INTEGRATION, "python-modules": ["airflow_llm_provider.triggers.release"]}],
        "connection-types": [
            {
                "connection-type": "vllm",
                "hook-class-name": "airflow_llm_provider.hooks.vllm.VLLMHook",
                "hook-name": "vLLM",
                "conn-fields": _CONN_FIELDS,
                "ui-field-behaviour": _FIELD_BEHAVIOUR,
            }
        ],
        "extra-links": ["airflow_llm_provider.operators.llm_batch.ResultsLink"],
        "cli": ["airflow_llm_provider.cli.definition.get_llm_batch_cli_commands"],
        "config": _CONFIG,
    }
