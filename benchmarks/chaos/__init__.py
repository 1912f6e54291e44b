"""Kills, on purpose and by the thousand: see `__main__`."""
