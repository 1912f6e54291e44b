"""The commands we add to ``airflow``, from 3.2 on.

Owns their names, arguments and help. Every ``airflow`` command imports this module: what a command does is imported
when it is called.
"""

from __future__ import annotations

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand, CLICommand, GroupCommand, lazy_load_command


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
            ),
        )
    ]
