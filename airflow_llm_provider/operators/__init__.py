"""Airflow operators: they read Airflow, build values, call the rooms below, and map the result back."""
