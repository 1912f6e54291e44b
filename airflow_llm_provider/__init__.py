"""LLM batch work on self-hosted vLLM from Apache Airflow.

This file stays empty of imports on purpose: Airflow imports providers' packages to read their metadata, and
nothing heavy may ride along.
"""

__version__ = "0.1.0"
