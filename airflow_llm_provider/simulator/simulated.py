"""`SimulatedVLLM`: a simulated vLLM in a thread of its own, on a free port of the loopback interface.

Owns what a test or a benchmark sees of it. Does not know what requests get (`simulator.server`) nor how it runs
(`simulator.thread`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_llm_provider.simulator.server import Handler
from airflow_llm_provider.simulator.server_spec import ServerSpec, with_flags
from airflow_llm_provider.simulator.thread import ServerThread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_llm_provider.simulator.fault import FaultFunction


class SimulatedVLLM(ServerThread):
    """A server shaped like vLLM that takes a GPU's time and no GPU. A context manager; entered again, it is restarted.

    ::

        with SimulatedVLLM("my-model", max_num_seqs=8, speed=10) as server:
            run_my_dag(base_url=server.url)

    Args:
        model: the served name; several names are one model's aliases.
        port: 0 takes a free one and keeps it over restarts.
        spec: what it is like.
        **flags: fields of `ServerSpec` or of its `EngineSpec`, which go before `spec`'s.

    Raises:
        TypeError: there is no such flag.
        ValueError: no such server would start.
    """

    def __init__(
        self,
        model: str | tuple[str, ...] = "simulated",
        *,
        port: int = 0,
        spec: ServerSpec | None = None,
        **flags: Any,
    ) -> None:
        names = (model,) if isinstance(model, str) else model
        self.spec = with_flags(spec or ServerSpec(), served_model_name=names, **flags)
        self._handler = Handler(self.spec)
        super().__init__(self._handler, self._handler.lifetime, port=port, name="simulated-vllm")

    @property
    def fault(self) -> FaultFunction | None:
        """Which requests go wrong, and how; may be set at any moment."""
        return self._handler.state.fault

    @fault.setter
    def fault(self, fault: FaultFunction | None) -> None:
        self._handler.state.fault = fault

    @property
    def received(self) -> int:
        """POSTs received on the model's routes, over all restarts."""
        return self._handler.state.received

    @property
    def counts(self) -> Mapping[str, int]:
        """The same by ``X-Request-Id``: a copy."""
        return dict(self._handler.state.counts)

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return self._handler.in_flight

    def drain(self) -> None:
        """From now on ``/health`` says 200 and every POST 500, as a vLLM that shuts down with a time-out does."""
        self._handler.state.draining = True

    def swap_model(self, root: str) -> None:
        """Serves other weights under the same name."""
        self._handler.state.root = root
