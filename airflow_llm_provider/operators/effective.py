"""Values of the provider configuration, with who set them.

Owns reading them. Does not know what they are for.
"""

from __future__ import annotations

import os
from configparser import RawConfigParser
from typing import Any, TypeVar

from airflow.configuration import conf

from airflow_llm_provider.exceptions import ConfigurationError

T = TypeVar("T")

SECTION = "llm_batch"
"""The provider's section in Airflow's configuration."""


def configured(option: str, kind: type[T]) -> tuple[T | None, str]:
    """The provider configuration's value for `option`, None where nobody set it or it is empty.

    A value that somebody set counts as set also where it equals the default.

    Raises:
        ConfigurationError: when the value is not of `kind`.
    """
    set_by = f"provider configuration [{SECTION}] {option}"
    text: str | None = conf.get(SECTION, option, fallback=None)
    if text is None or not text.strip() or not _is_set(option):
        return None, set_by
    convert: Any = kind
    try:
        return convert(text), set_by
    except ValueError as error:
        raise ConfigurationError(f"{set_by} is {text!r}, which is no {kind.__name__}") from error


def _is_set(option: str) -> bool:
    """Whether the environment or a configuration file names `option`: Airflow's own answer counts its defaults in."""
    variable = f"AIRFLOW__{SECTION.upper()}__{option.upper()}"
    return variable in os.environ or RawConfigParser.has_option(conf, SECTION, option)
