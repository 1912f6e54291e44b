"""Fixtures of the system tests: each is a real Airflow with a scheduler of its own."""

from __future__ import annotations

from llm_fixtures import llm_airflow, llm_stub, llm_work

__all__ = ["llm_airflow", "llm_stub", "llm_work"]
