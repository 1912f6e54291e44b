"""A run on object storage, and the input sources it reads."""
