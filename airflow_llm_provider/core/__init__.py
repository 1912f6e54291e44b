"""Decisions. Pure: values in, values out, `now` passed in. No clock, I/O, asyncio or Airflow in here."""
