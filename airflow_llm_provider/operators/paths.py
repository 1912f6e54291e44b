"""Where a run's results lie, from what the DAG and the platform say.

Owns the default path and the refusal of paths that climb out of their base. Does not touch storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from airflow_llm_provider.core.identity import RunIdentity


def result_uri(result_path: str | None, *, base: str, identity: RunIdentity) -> str:
    """The run's URI.

    Args:
        result_path: what the DAG says, rendered: a URI, an absolute local path, or a path relative to `base`;
            None for the default.
        base: the configured base, a URI or an absolute local path.
        identity: makes the default path this run's alone.

    Raises:
        ConfigurationError: when the path is empty or holds a ``..`` segment.
    """
    if result_path is None:
        return f"{_with_scheme(base)}/{identity.path()}"
    path = result_path.strip()
    if not path.strip("/") or path.endswith("://"):
        raise ConfigurationError(
            f"result_path is empty after rendering ({result_path!r}). Name a folder, or leave it out"
        )
    if not path.isprintable():  # paths are made into URLs, which lose tabs and line breaks: '.<tab>.' becomes '..'
        raise ConfigurationError(f"result_path {path!r} holds a character that no path should. Name the folder itself")
    if ".." in path.replace("\\", "/").split("/"):
        raise ConfigurationError(f"result_path {path!r} holds '..', which could leave its base. Name the folder itself")
    if path.startswith("//") or (path.startswith("file://") and not path.startswith("file:///")):
        raise ConfigurationError(
            f"result_path {path!r} names a host where none can be. A local folder is /folder or file:///folder"
        )
    if "://" in path or path.startswith("/"):
        return _with_scheme(path)
    return f"{_with_scheme(base)}/{path.strip('/')}"


def browse_link(uri: str, template: str) -> str:
    """The address a person opens to see `uri`: `template` with ``{uri} {scheme} {bucket} {key}`` filled in.

    Raises:
        ConfigurationError: when the template names anything else.
    """
    if not template:
        return uri
    parts = urlsplit(uri)
    try:
        return template.format(
            uri=uri, scheme=parts.scheme, bucket=parts.netloc.rpartition("@")[2], key=parts.path.lstrip("/")
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigurationError(
            f"provider configuration [llm_batch] results_link {template!r} is no template: {error!r}. "
            "It may use {uri}, {scheme}, {bucket} and {key}"
        ) from error


def _with_scheme(path: str) -> str:
    return path.rstrip("/") if "://" in path else f"file://{path.rstrip('/')}"
