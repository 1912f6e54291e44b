"""Airflow triggers: they wait in the triggerer, where nothing may block and no model is called."""
