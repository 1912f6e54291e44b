"""``@task.vllm_batch``: a function that returns rows becomes the batch.

Owns calling the function with what Airflow hands it, as any TaskFlow function is called. What becomes of its rows is
`sources.FunctionSource`'s, and all else `LLMBatchOperator`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.bases.decorator import DecoratedOperator, _TaskDecorator, determine_kwargs
from airflow.sdk.definitions.context import context_merge

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.operators.llm_batch import LLMBatchOperator
from airflow_llm_provider.operators.placing import place_mapped
from airflow_llm_provider.sources import Returned

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from airflow.sdk import Context, XComArg
    from airflow.sdk.bases.decorator import TaskDecorator
    from airflow.sdk.definitions.xcom_arg import PlainXComArg

    from airflow_llm_provider.batch.job import BatchJob
    from airflow_llm_provider.storage.store import RunStore


class _BatchDecoratedOperator(DecoratedOperator, LLMBatchOperator):
    """An `LLMBatchOperator` whose source is what a function returns.

    Args:
        python_callable: the function.
        op_args: its positional arguments. Templated.
        op_kwargs: its others. Templated.
        **kwargs: `LLMBatchOperator`'s, without ``source``.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in LLMBatchOperator.template_fields if name != "source"),
    )
    custom_operator_name = "@task.vllm_batch"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "source" in kwargs:
            raise ConfigurationError("source: with @task.vllm_batch it is what the function returns; leave it out")
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            kwargs_to_upstream={"source": ()},
            **kwargs,
        )

    def _read(self, context: Context) -> tuple[BatchJob, RunStore, Callable[[], None]]:
        """See `LLMBatchOperator`. Nothing is called before the rows are wanted."""

        def call() -> Any:
            known = context.copy()
            context_merge(known, self.op_kwargs)
            wanted = determine_kwargs(self.python_callable, self.op_args, known)
            return self.python_callable(*self.op_args, **wanted)

        arguments = {"op_args": self.op_args, "op_kwargs": self.op_kwargs}
        self.source = Returned(call, name=self.python_callable.__name__, arguments=arguments)
        return super()._read(context)


class _BatchDecorator(_TaskDecorator):  # type: ignore[type-arg] # attrs' generics
    """Puts into mapped tasks what ``LLMBatchOperator.partial`` does: the workload's pool, weight and retries."""

    def _expand(self, expand_input: Any, *, strict: bool) -> XComArg:
        expanded = super()._expand(expand_input, strict=strict)
        mapped: Any = cast("PlainXComArg", expanded).operator
        kwargs = mapped.partial_kwargs
        place_mapped(LLMBatchOperator, kwargs, given=self.kwargs, dag=mapped.dag, task_group=mapped.task_group)
        return expanded


def vllm_batch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a function's rows a batch.

    ::

        @task.vllm_batch(prompt="Sum up: {{ row.body }}", max_tokens=200)
        def summarise(day: str):
            yield from mails_of(day)

    The function is called as any TaskFlow function is, once for each run: what it returns is kept in the run's folder
    until the run is finished, since a function that is called again may return other rows.

    Args:
        python_callable: returns rows (a list or a generator of objects), or says where they lie: a path or several,
            `sources.Files`, `sources.Query`, an Asset.
        **kwargs: `LLMBatchOperator`'s, without ``source``.

    Raises:
        ConfigurationError: when the arguments contradict each other; Airflow shows it as a DAG import error.
    """
    multiple_outputs = kwargs.pop("multiple_outputs", False)

    def decorated(function: Callable[..., Any]) -> Any:
        return _BatchDecorator(
            function=function,
            multiple_outputs=multiple_outputs,
            operator_class=_BatchDecoratedOperator,
            kwargs={**kwargs},
        )

    return cast("TaskDecorator", decorated if python_callable is None else decorated(python_callable))
