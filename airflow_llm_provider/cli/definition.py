"""The commands we add to ``airflow``, from 3.2 on.

Owns their names, arguments and help. Every ``airflow`` command imports this module: what a command does is imported
when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ActionCommand,
    Arg,
    CLICommand,
    GroupCommand,
    lazy_load_command,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_arg: Callable[..., Arg] = Arg  # which says no types of its own

_RUN = _arg(
    ("run",),
    nargs="+",
    help="The run: the path that its results lie at, or its DAG, task and run id, and the map index of a mapped task",
)
_JSON = _arg(("-o", "--output"), choices=("text", "json"), default="text", help="(%(default)s)")
_STATUS = _arg(
    ("--status",),
    action="append",
    required=True,
    choices=("errored", "invalid_output", "truncated"),
    help="Rows that ended so; may be said more than once",
)
_BASE = _arg(("base",), nargs="?", help="The folder that runs lie below; the provider configuration's by default")
_AGE = _arg(("--older-than",), required=True, help="How long ago they must have finished: 30d, 12h")
_WHAT = _arg(
    ("--what",),
    choices=("runs", "dead-letters"),
    default="runs",
    help="Whole runs, or their dead letters alone, with the rows that a replay would need (%(default)s)",
)
_YES = _arg(("-y", "--yes"), action="store_true", help="Remove them; without it, they are only shown")


def get_llm_batch_cli_commands() -> list[CLICommand]:
    """``airflow llm-batch …``."""
    return [
        GroupCommand(
            name="llm-batch",
            help="Look after LLM batch work",
            subcommands=(
                ActionCommand(
                    name="check-pools",
                    help="Find pools that keep batch tasks from starting",
                    description="Look at the pools of batch tasks and of the provider configuration [llm_batch]: are "
                    "they there, large enough for every task, and without deferred tasks in them? Ends with 1 if not.",
                    func=lazy_load_command("airflow_llm_provider.cli.check_pools.check_pools"),
                    args=(ARG_OUTPUT, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="status",
                    help="How far a run is",
                    description="Read from where the run lies: how many rows have landed and how they ended, at which "
                    "pace, and what holds it. Ends with 1 if no run lies there.",
                    func=lazy_load_command("airflow_llm_provider.cli.runs.status"),
                    args=(_RUN, _JSON, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="replay",
                    help="Have rows of a finished run asked for again",
                    description="Leaves word where the run lies. When its task is cleared, rows that ended so are "
                    "asked for again, by the DAG as it is then, and all others stay.",
                    func=lazy_load_command("airflow_llm_provider.cli.runs.replay"),
                    args=(_RUN, _STATUS, ARG_VERBOSE),
                ),
                ActionCommand(
                    name="clean",
                    help="Remove finished runs that are old",
                    description="Runs that have no manifest are never removed, however old they are.",
                    func=lazy_load_command("airflow_llm_provider.cli.clean.clean"),
                    args=(_BASE, _AGE, _WHAT, _YES, ARG_VERBOSE),
                ),
            ),
        )
    ]
