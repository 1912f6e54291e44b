"""Names that Airflow moved between 3.1 and 3.3.

Owns nothing else: when 3.1 is no longer supported, this module goes.
"""

from __future__ import annotations

try:
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSkipException,
    )
except ImportError:  # Airflow 3.1 keeps them elsewhere
    from airflow.exceptions import (  # type: ignore[attr-defined,no-redef]
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSkipException,
    )

try:
    from airflow.sdk.observability.stats import Stats
except ImportError:  # Airflow 3.1's task processes have the core's
    from airflow.stats import Stats

from airflow.sdk.definitions.xcom_arg import ResolveMixin  # type: ignore[attr-defined] # its own module moves

__all__ = [
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSkipException",
    "ResolveMixin",
    "Stats",
]
