"""Programs for people and tests: a real Airflow, a small model, the demo. Nothing the package imports."""
