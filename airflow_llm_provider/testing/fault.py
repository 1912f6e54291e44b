"""What goes wrong with a request: the simulator's faults, under the name they have always had here."""

from airflow_llm_provider.simulator.fault import Fault, FaultFunction, FaultKind, Rule, first_of

__all__ = ["Fault", "FaultFunction", "FaultKind", "Rule", "first_of"]
