"""Values of the provider configuration, with who set them.

Owns reading them. Does not know what they are for.
"""

from __future__ import annotations

from typing import Any, TypeVar

from airflow.configuration import conf

from airflow_llm_provider.exceptions import ConfigurationError

T = TypeVar("T")

SECTION = "llm_batch"
"""The provider's section in Airflow's configuration."""


def configured(option: str, kind: type[T]) -> tuple[T | None, str]:
    """The provider configuration's value for `option`, None where nobody set it.

    Raises:
        ConfigurationError: when the value is not of `kind`.
    """
    text: str | None = conf.get(SECTION, option, fallback=None)
    default: str | None = conf.get_default_value(SECTION, option, fallback=None)
    set_by = f"provider configuration [{SECTION}] {option}"
    if text is None or text in ("", default):
        return None, set_by
    convert: Any = kind
    try:
        return convert(text), set_by
    except ValueError as error:
        raise ConfigurationError(f"{set_by} is {text!r}, which is no {kind.__name__}") from error
