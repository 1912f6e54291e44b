"""What an `LLMBatchOperator` wants of its answers, as rules.

Owns which of the operator's words go together. Does not know what the rules do (`core.answers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_llm_provider.core.answers import AnswerRules
from airflow_llm_provider.core.output_schema import OutputSchema
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from airflow_llm_provider.operators.llm_batch import LLMBatchOperator

REPAIR_ATTEMPTS = 2

_SAMPLES = ("n", "best_of")
"""Fields that ask for several answers, of which a part's line has one output."""


_VALUES = {"embeddings": "vectors", "classify": "labels", "score": "scores"}


def answer_rules(operator: LLMBatchOperator) -> AnswerRules:
    """The rules for the operator's answers.

    Raises:
        ConfigurationError: the words make no sense, or not together.
    """
    if operator.on_truncated not in ("report", "accept"):
        raise ConfigurationError(f"on_truncated is 'report' or 'accept', not {operator.on_truncated!r}")
    if operator.endpoint in _VALUES:
        words = ("output_schema", "retry_max_tokens", "max_tokens")
        if said := [name for name in words if getattr(operator, name) is not None]:
            told = f"endpoint={operator.endpoint!r} answers with {_VALUES[operator.endpoint]}; leave it out"
            raise ConfigurationError(f"{', '.join(said)}: {told}")
    schema = None if operator.output_schema is None else OutputSchema(operator.output_schema)
    extra = operator.extra_body or {}
    if schema is not None:
        _check_beside_schema(operator)
    rules = AnswerRules(
        schema=schema,
        repair_attempts=operator.repair_attempts,
        accept_truncated=operator.on_truncated == "accept",
        retry_max_tokens=operator.retry_max_tokens,
    )
    if rules.retry_max_tokens is not None and _templated(operator):
        most = operator.max_tokens or extra.get("max_completion_tokens")
        if most is None:
            raise ConfigurationError(
                "retry_max_tokens has no effect without max_tokens: answers are cut off where the model's context ends"
            )
        if isinstance(most, int) and most >= rules.retry_max_tokens:
            raise ConfigurationError(
                f"retry_max_tokens ({rules.retry_max_tokens}) must be more than max_tokens ({most})"
            )
    return rules


def _check_beside_schema(operator: LLMBatchOperator) -> None:
    """Whether what is said besides makes sense with a schema."""
    extra = operator.extra_body or {}
    if operator.on_truncated == "accept":
        raise ConfigurationError("on_truncated='accept' and output_schema: half an answer fits none; leave one out")
    if several := [name for name in _SAMPLES if extra.get(name, 1) != 1]:
        raise ConfigurationError(f"{', '.join(several)}: with output_schema a row has one answer; leave it out")
    if constraints(operator) and "response_format" in extra:
        raise ConfigurationError("response_format: output_schema sets it; leave one of them out")


def constraints(operator: LLMBatchOperator) -> dict[str, Any]:
    """Body fields by which the server keeps to the schema; rows that are whole requests are sent as they are."""
    if operator.output_schema is None or not operator.constrain_output or not _templated(operator):
        return {}
    return {"response_format": OutputSchema(operator.output_schema).response_format}


def _templated(operator: LLMBatchOperator) -> bool:
    return operator.prompt is not None or operator.messages is not None
