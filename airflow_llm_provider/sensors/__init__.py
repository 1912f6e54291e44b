"""Airflow sensors: the gates of batch work as tasks of their own."""
