"""Servers shaped like vLLM for tests of DAGs and of this package: one instant, one with a GPU's time; faulty on demand.

In a test::

    with StubVLLM(model="stub") as stub:
        run_my_dag(base_url=stub.url)
    assert stub.received == 100

`StubVLLM` answers at once with an echo. `SimulatedVLLM` has slots, a queue, a KV cache and ``/metrics``, and takes the
time that these make, or a tenth of it (``speed=10``). `airflow_llm_provider.testing.plugin` has fixtures of both.

As processes, to be killed or shared by several, with the same faults sent as JSON::

    python -m airflow_llm_provider.testing --port 0 --model stub --log requests.log
    python -m airflow_llm_provider.simulator --port 0 --served-model-name simulated --max-num-seqs 8
    curl -X PUT $URL/_faults -d '[{"fault": {"kind": "answer", "status": 503}, "every": 10}]'

Their bodies are copies of a real vLLM 0.32's; ``tests/vllm`` compares them with one.
Nothing in the package imports this, and this never imports Airflow.
"""

from airflow_llm_provider.simulator.fault import Fault, FaultKind, Rule
from airflow_llm_provider.simulator.simulated import SimulatedVLLM
from airflow_llm_provider.testing.stub import StubVLLM

__all__ = ["Fault", "FaultKind", "Rule", "SimulatedVLLM", "StubVLLM"]
