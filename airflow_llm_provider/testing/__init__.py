"""A server shaped like vLLM for tests of DAGs and of this package: instant, deterministic, and faulty on demand.

In a test::

    with StubVLLM(model="stub") as stub:
        run_my_dag(base_url=stub.url)
    assert stub.received == 100

As a process, to be killed or shared by several, with the same faults sent as JSON::

    python -m airflow_llm_provider.testing --port 0 --model stub --log requests.log
    curl -X PUT $URL/_faults -d '[{"fault": {"kind": "answer", "status": 503}, "every": 10}]'

Its bodies are copies of a real vLLM 0.32's; ``tests/vllm`` compares them with one.
Nothing in the package imports this, and this never imports Airflow.
"""

from airflow_llm_provider.simulator.fault import Fault, FaultKind, Rule
from airflow_llm_provider.testing.stub import StubVLLM

__all__ = ["Fault", "FaultKind", "Rule", "StubVLLM"]
