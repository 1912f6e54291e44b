"""Every error this package raises on purpose, grouped by what the caller should do.

::

    LLMBatchError
    ├── NoRetryError                 the next try would fail the same way: a person must change something
    │   ├── ConfigurationError       the DAG, the connection or the provider configuration is wrong
    │   ├── SourceError              the input is missing, changed or ambiguous
    │   │   └── DuplicateIdError     two rows carry the same custom_id
    │   ├── StaleRunError            a run lies there whose answers were shaped differently
    │   ├── ForeignRunError          the result path belongs to another run
    │   ├── RunMissingError          a run must lie there and does not: nothing is started afresh
    │   ├── UnfinishedSharesError    a run that tasks share is to be assembled before all of them are through
    │   ├── EndpointRefusedError     the endpoint is up and says no: key, model or route
    │   ├── ReplayError              a finished run is not as it says, so its rows can't be carried over
    │   ├── SinkError                all rows have landed, and cannot be written as a sink wants them
    │   ├── TooManyErrorsError       more rows failed than the run tolerates
    │   └── FruitlessTriesError      tries in a row brought the run nowhere
    └── RetryLaterError              the next try may well succeed and goes on where this one stopped
        ├── EndpointDownError        the endpoint could not be reached, or had no capacity, for too long
        ├── ConnectionMissingError   Airflow does not know the connection, or could not ask where it is kept
        ├── StorageError             object storage could not be read or written
        ├── SourceUnavailableError   the database that has the rows could not be asked
        └── RunStoppedError          somebody stopped this try (SIGTERM, mark failed), or another try took over

The Airflow shells turn the first group into ``AirflowFailException`` and the second into ``AirflowException``.
Each message says what happened, to which thing, and what to do next.
"""

from __future__ import annotations


class LLMBatchError(Exception):
    """Root of the tree; never raised itself."""


class NoRetryError(LLMBatchError):
    """No retry will mend it: a person must change something first."""


class ConfigurationError(NoRetryError):
    """The DAG, the connection or the provider configuration is wrong."""


class SourceError(NoRetryError):
    """The input is missing, has changed under a started run, or is ambiguous."""


class DuplicateIdError(SourceError):
    """Two rows of one run carry the same ``custom_id``."""


class StaleRunError(NoRetryError):
    """A run lies at the result path whose answers were shaped by other inputs (fingerprint mismatch)."""


class ForeignRunError(NoRetryError):
    """The result path holds a run of another task instance, or files that no run explains."""


class RunMissingError(NoRetryError):
    """An earlier try recorded a run at this path and nothing lies there; starting afresh could redo it all."""


class UnfinishedSharesError(NoRetryError):
    """A run that tasks share is to be assembled, and not all of its rows have an outcome."""


class EndpointRefusedError(NoRetryError):
    """The endpoint answered and refused: bad API key, unknown model, no such route, untrusted certificate."""


class ReplayError(NoRetryError):
    """A finished run is not as its manifest says, so that what stays of it cannot be carried over to a replay."""


class SinkError(NoRetryError):
    """All rows have landed, and what a sink makes of them cannot be written; without the sink the run is finished."""


class TooManyErrorsError(NoRetryError):
    """More rows ended in error than ``max_error_rate`` tolerates."""


class FruitlessTriesError(NoRetryError):
    """So many tries in a row settled no row that another one will not either (``fruitless_retries``)."""


class RetryLaterError(LLMBatchError):
    """Nothing is lost; the next try resumes.

    Attributes:
        settled: rows that the try had settled when it ended so.
    """

    settled = 0


class EndpointDownError(RetryLaterError):
    """The endpoint was unreachable or without capacity for longer than the run's patience."""


class ConnectionMissingError(RetryLaterError):
    """Airflow knows no such connection. It says the same where a secrets backend is away, so it may be there soon."""


class StorageError(RetryLaterError):
    """Object storage could not be read or written. Never means that nothing is there."""


class SourceUnavailableError(RetryLaterError):
    """What has the rows, such as a database, could not be asked, or went away while it was."""


class RunStoppedError(RetryLaterError):
    """This try was told to stop, or another has taken its run over; what it had settled is journalled."""
