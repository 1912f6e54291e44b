"""Commands of the `airflow` program: for people who run Airflow, beside its database rather than in a task."""
