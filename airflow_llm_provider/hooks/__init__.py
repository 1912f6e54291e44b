"""Airflow hooks: they read a connection and build values or clients from it."""
