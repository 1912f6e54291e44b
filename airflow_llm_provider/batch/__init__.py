"""The runner: one event loop that feeds rows to the dispatcher, carries out its commands and settles outcomes."""
