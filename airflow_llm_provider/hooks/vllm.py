"""The hook for connections of type ``vllm``.

Owns fetching the connection and handing out clients made from it. Does not know the fields' meaning
(`hooks.connection`), and does not send batch work: that is `endpoint`'s client, a tenth of openai's CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Never

from airflow.sdk import BaseHook
from airflow.sdk import log as sdk_log

from airflow_llm_provider.exceptions import ConfigurationError
from airflow_llm_provider.hooks.connection import read_connection, secrets_of

try:
    from airflow.sdk.exceptions import AirflowNotFoundException
except ImportError:  # Airflow 3.1 keeps it elsewhere
    from airflow.exceptions import AirflowNotFoundException  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from airflow_llm_provider.endpoint.settings import EndpointSettings


class VLLMHook(BaseHook):
    """Where a vLLM endpoint is and how to talk to it.

    Args:
        vllm_conn_id: the id of a connection of type ``vllm``.
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
            ConfigurationError: when the connection is missing or holds a bad value.
        """
        if self._settings is None:
            try:
                connection = self.get_connection(self.vllm_conn_id)
            except AirflowNotFoundException:
                self._raise_missing()
            settings = read_connection(connection)
            for secret in secrets_of(settings):
                sdk_log.mask_secret(secret)
            self._settings = settings
        return self._settings

    async def aget_settings(self) -> EndpointSettings:
        """Return the same as `get_settings`, without blocking the event loop.

        Raises:
            ConfigurationError: when the connection is missing or holds a bad value.
        """
        if self._settings is None:
            try:
                connection = await self.aget_connection(self.vllm_conn_id)
            except AirflowNotFoundException:
                self._raise_missing()
            settings = read_connection(connection)
            for secret in secrets_of(settings):
                await _amask(secret)
            self._settings = settings
        return self._settings

    def _raise_missing(self) -> Never:
        raise ConfigurationError(
            f"Airflow knows no connection {self.vllm_conn_id!r}. Make it with: airflow connections add "
            f"{self.vllm_conn_id} --conn-type vllm --conn-host http://gpu1:8000 "
            """--conn-extra '{"model": "my-model"}'"""
        ) from None


async def _amask(secret: str) -> None:
    """Mask a secret from async code; Airflow 3.1 has only the blocking call, which its own loop makes too."""
    if amask := getattr(sdk_log, "amask_secret", None):
        await amask(secret)
    else:
        sdk_log.mask_secret(secret)
