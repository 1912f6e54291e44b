"""A simulated vLLM: an engine that is arithmetic, and a server that speaks vLLM's routes over it."""
