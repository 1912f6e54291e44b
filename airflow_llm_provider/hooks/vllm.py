"""The hook for connections of type ``vllm``.

Owns fetching the connection, masking its secrets, and its form in the UI. Does not know what the fields mean
(`hooks.connection`), how clients are made of them (`hooks.clients`) or what a server's answer means (`hooks.probe`).
Imports neither openai nor aiohttp until somebody needs them: Airflow imports hooks in processes that run no task.
"""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Never

from airflow.sdk import BaseHook
from airflow.sdk import log as sdk_log

from airflow_llm_provider.exceptions import ConnectionMissingError, LLMBatchError
from airflow_llm_provider.get_provider_info import get_provider_info
from airflow_llm_provider.hooks.compat import AirflowNotFoundException
from airflow_llm_provider.hooks.connection import prometheus_conn_id, read_connection, secrets_of
from airflow_llm_provider.hooks.probe import look

if TYPE_CHECKING:
    from collections.abc import Mapping

    import openai

    from airflow_llm_provider.endpoint.settings import EndpointSettings
    from airflow_llm_provider.hooks.probe import Finding


class VLLMHook(BaseHook):
    """Where a vLLM endpoint is, how to talk to it, and who answers there.

    Args:
        vllm_conn_id: the id of a connection of type ``vllm``.
        logger_name: as in `BaseHook`.
    """

    conn_name_attr = "vllm_conn_id"
    default_conn_name = "vllm_default"
    conn_type = "vllm"
    hook_name = "vLLM"

    def __init__(self, vllm_conn_id: str = default_conn_name, logger_name: str | None = None) -> None:
        super().__init__(logger_name=logger_name)
        self.vllm_conn_id = vllm_conn_id
        self._settings: EndpointSettings | None = None

    def get_settings(self) -> EndpointSettings:
        """Return what the connection says; fetched once per hook.

        Raises:
            ConfigurationError: when the connection holds a bad value.
            ConnectionMissingError: when Airflow knows none, or can't ask.
        """
        if self._settings is None:
            try:
                connection = self.get_connection(self.vllm_conn_id)
            except AirflowNotFoundException:
                self._raise_missing()
            second_id = prometheus_conn_id(connection)
            try:
                second = self.get_connection(second_id) if second_id else None
            except AirflowNotFoundException:
                self._raise_second_missing(second_id)
            settings = read_connection(connection, second)
            for secret in secrets_of(settings):
                sdk_log.mask_secret(secret)
            self._settings = settings
        return self._settings

    async def aget_settings(self) -> EndpointSettings:
        """Return the same as `get_settings`, without blocking the event loop.

        Raises:
            ConfigurationError: when the connection holds a bad value.
            ConnectionMissingError: when Airflow knows none, or can't ask.
        """
        if self._settings is None:
            try:
                connection = await self.aget_connection(self.vllm_conn_id)
            except AirflowNotFoundException:
                self._raise_missing()
            second_id = prometheus_conn_id(connection)
            try:
                second = await self.aget_connection(second_id) if second_id else None
            except AirflowNotFoundException:
                self._raise_second_missing(second_id)
            settings = read_connection(connection, second)
            for secret in secrets_of(settings):
                await _amask(secret)
            self._settings = settings
        return self._settings

    def get_conn(self) -> openai.OpenAI:
        """Return an openai client for the connection's first base URL. The caller closes it.

        It sends what the connection says and nothing from the environment's ``OPENAI_API_KEY``, ``OPENAI_ORG_ID``
        or ``OPENAI_PROJECT_ID``; it uses no proxy and follows no redirect, as batch work doesn't either.

        Raises:
            ConfigurationError: as in `get_settings`, and when the CA bundle can't be read.
        """
        from airflow_llm_provider.hooks.clients import client  # noqa: PLC0415 - imports openai, which takes a second

        return client(self.get_settings())

    async def get_async_conn(self) -> openai.AsyncOpenAI:
        """Return the async twin of `get_conn`'s client. A thread makes it, since importing openai takes a second.

        Raises:
            ConfigurationError: as in `get_conn`.
        """
        settings = await self.aget_settings()

        def make() -> openai.AsyncOpenAI:
            from airflow_llm_provider.hooks.clients import async_client  # noqa: PLC0415 - imports openai

            return async_client(settings)

        return await asyncio.to_thread(make)

    def served_models(self) -> tuple[str, ...]:
        """Return the models that every base URL serves, in the first one's order. Blocks.

        Raises:
            ConfigurationError: as in `get_conn`.
            EndpointRefusedError: a server answered, and a person must change something: key, certificate, address.
            EndpointDownError: a server cannot be reached, or is not ready.
        """
        first, *others = [[model.id for model in finding.identity().models] for finding in self._look()]
        return tuple(name for name in first if all(name in other for other in others))

    def answers_as_vllm(self) -> bool:
        """Return whether every base URL answers as vLLM, rather than as another OpenAI-compatible server. Blocks.

        Raises:
            LLMBatchError: as in `served_models`.
        """
        return all(finding.identity().is_vllm for finding in self._look())

    def test_connection(self) -> tuple[bool, str]:
        """Ask every base URL who it is, and return whether batch work could start, and why or why not. Blocks."""
        try:
            model = self.get_settings().model
            verdicts = [finding.verdict(model) for finding in self._look()]
        except LLMBatchError as error:
            return False, str(error)
        return all(good for good, _ in verdicts), ". ".join(sentence for _, sentence in verdicts)

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the form's labels for Airflow 3.1. From 3.2 on Airflow reads them from the provider's metadata."""
        behaviour = _form()["ui-field-behaviour"]
        return {key.replace("-", "_"): value for key, value in behaviour.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's extra fields for Airflow 3.1, which puts its own classes in the place of wtforms'."""
        wtforms = importlib.import_module("wtforms")
        kinds = {"integer": wtforms.IntegerField}
        return {
            name: kinds.get(field["schema"]["type"][0], wtforms.StringField)(
                field["label"], description=field["description"]
            )
            for name, field in _form()["conn-fields"].items()
        }

    def _look(self) -> tuple[Finding, ...]:
        settings = self.get_settings()
        with ThreadPoolExecutor(max_workers=1) as thread:  # so that it works where an event loop runs, too
            return thread.submit(lambda: asyncio.run(look(settings))).result()

    def _raise_missing(self) -> Never:
        raise ConnectionMissingError(
            f"Airflow knows no connection {self.vllm_conn_id!r}, can't parse it, or can't reach where it is kept. "
            f"Where it is missing, make it with: airflow connections "
            f"add {self.vllm_conn_id} --conn-type vllm --conn-host http://gpu1:8000 "
            """--conn-extra '{"model": "my-model"}'"""
        ) from None

    def _raise_second_missing(self, conn_id: str | None) -> Never:
        raise ConnectionMissingError(
            f"Connection {self.vllm_conn_id!r}: extra.prometheus_conn_id is {conn_id!r}, and Airflow knows no such "
            "connection, can't parse it, or can't reach where it is kept. Where it is missing, make it with: "
            f"airflow connections add {conn_id} --conn-type http --conn-host http://prometheus:9090"
        ) from None


def _form() -> Mapping[str, Any]:
    form: Mapping[str, Any] = get_provider_info()["connection-types"][0]
    return form


async def _amask(secret: str) -> None:
    """Mask a secret from async code; Airflow 3.1 has only the blocking call, which its own loop makes too."""
    if amask := getattr(sdk_log, "amask_secret", None):
        await amask(secret)
    else:
        sdk_log.mask_secret(secret)
