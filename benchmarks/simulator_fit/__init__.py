"""Fits the simulator to a real vLLM, and plays traffic it was not fitted to against both."""
