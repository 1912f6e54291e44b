"""Source (a): what a gateway or its clients measured, asked of a Prometheus by an expression of the platform's.

Owns Prometheus's query API, and what its answers mean: a number is a latency in seconds, NaN means that nobody asked
for anything, and everything else – no series, several, an error, a partial answer – is unknown. Never sends the
endpoint's API key. Does not know what the expression measures.

The reading is as exact as the expression: ``histogram_quantile`` interpolates inside a bucket, so put the threshold on
a bucket's bound. A histogram counts a request when its first token is there: a server that answers nobody at all
looks idle from here, and is noticed by whoever sends requests to it.
"""

from __future__ import annotations

import asyncio
import re
from math import inf, isnan
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from airflow_llm_provider.core.objective import Failed, Idle, Measured
from airflow_llm_provider.endpoint.credentials import blotted
from airflow_llm_provider.endpoint.failure import read_json, shorten
from airflow_llm_provider.endpoint.polled_page import MOST_BYTES
from airflow_llm_provider.endpoint.settings import PERIOD, QUANTILE, QUOTED, SERVER
from airflow_llm_provider.endpoint.transport import read_body, ssl_context, watchful_socket
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from airflow_llm_provider.core.objective import Objective, Reading
    from airflow_llm_provider.endpoint.settings import LatencySettings

ASK_EVERY_S: Final = 2.0
"""Asked sooner, the last readings are given again: Prometheus scrapes every few seconds at best."""

WAIT_S: Final = 10.0

_PORTS: Final = {"http": 80, "https": 443}
_HOST = re.compile(r"[\w.:%-]+")  # nothing that ends a quoted text
_SPECIAL = re.compile(r"[.\[\]]")  # of what such a name has, in regular expressions
_NOTE = "PromQL info"  # such a warning says that an expression could be better, not that its value is wrong


class PrometheusSource:
    """Asks a Prometheus, or what speaks its API: Thanos, Mimir, VictoriaMetrics.

    Args:
        settings: with source `prometheus`.
        base_url: whose latency it is, where the expression tells servers apart.
        ask_every_s: see `ASK_EVERY_S`.

    Raises:
        ConfigurationError: a URL is none, or the CA bundle can't be read.
    """

    def __init__(self, settings: LatencySettings, *, base_url: str, ask_every_s: float = ASK_EVERY_S) -> None:
        self._settings = settings
        self._ask_every_s = ask_every_s
        self._secrets = blotted(None, settings.prometheus_headers.values())
        self._root = (settings.prometheus_url or "").rstrip("/")
        if not self._root.startswith(("http://", "https://")):
            raise ConfigurationError(f"prometheus_url {self._root!r} is no URL such as http://prometheus:9090")
        self._url = URL(f"{self._root}/api/v1/query")
        self._queries = {objective: expression(settings, objective, base_url) for objective in settings.objectives}
        https = self._root.startswith("https://")
        self._ssl = ssl_context(settings.prometheus_verify, whose="Prometheus's") if https else True
        self._session: aiohttp.ClientSession | None = None
        self._asked_s: float | None = None
        self._readings: Mapping[Objective, Reading] = {}

    @property
    def name(self) -> str:
        """What is read, for the log."""
        return f"Prometheus at {self._root}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._ssl, socket_factory=watchful_socket),
            headers={
                "User-Agent": "airflow-llm-provider",
                "Accept-Encoding": "identity",  # or a small answer might unpack to a large one
                **self._settings.prometheus_headers,
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=WAIT_S),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def read(self) -> Mapping[Objective, Reading]:
        """Ask for each objective's quantile."""
        now_s = asyncio.get_running_loop().time()
        if self._asked_s is None or now_s - self._asked_s >= self._ask_every_s:
            readings = await asyncio.gather(*(self._ask(*each) for each in self._queries.items()))
            self._readings = dict(zip(self._queries, readings, strict=True))
            self._asked_s = now_s
        return self._readings

    async def _ask(self, objective: Objective, query: str) -> Reading:
        if self._session is None:
            raise RuntimeError("PrometheusSource is used outside `async with`")
        try:
            async with self._session.post(self._url, data={"query": query}, allow_redirects=False) as response:
                body, status = await read_body(response, most_bytes=MOST_BYTES), response.status
        except TimeoutError:
            return Failed(f"{self.name} gave no answer in {WAIT_S:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return self._failed("can't be asked", str(error) or type(error).__name__)
        return self._reading(objective, status, read_json(body))

    def _reading(self, objective: Objective, status: int, answer: Any) -> Reading:
        what = f"the query for {objective.name}"
        match answer:
            case {"status": "success", "data": {"resultType": kind, "result": result}}:
                told = answer.get("warnings")
                warnings = told if isinstance(told, list) else [] if told is None else [told]
                warnings = [text for text in warnings if not (isinstance(text, str) and text.startswith(_NOTE))]
                if warnings:
                    words = "; ".join(text if isinstance(text, str) else "no words" for text in warnings)
                    return self._failed(f"warns that {what} may be incomplete", words)
                return self._value(what, kind, result)
            case {"status": "error", "error": str(error)}:
                return self._failed(f"refuses {what}", error)
            case _ if status in (401, 403):
                return self._failed("refuses access", f"HTTP {status}; see prometheus_conn_id's login and headers")
            case _:
                return self._failed("does not answer as a Prometheus", f"HTTP {status}; see prometheus_url")

    def _value(self, what: str, kind: str, result: Any) -> Reading:
        match kind, result:
            case "scalar", [_, str(text)]:
                pass
            case "vector", [{"value": [_, str(text)]}]:
                pass
            case "vector", []:
                return self._failed(
                    f"has nothing for {what}", "no series, or no sample of it in the period; is it still scraped?"
                )
            case "vector", list():
                return self._failed(
                    f"has {len(result)} series for {what}",
                    "wrap it so that one is left, as in max(…) or sum by (le) (…)",
                )
            case _:
                return self._failed(f"answers {what} with a {kind}", "it must be one number")
        try:
            value_s = float(text)  # Prometheus writes NaN, +Inf and -Inf, all of which Python reads
        except ValueError:
            value_s = inf
        if isnan(value_s):
            return Idle()
        if not 0 <= value_s < inf:
            return self._failed(f"answers {what} with {text}", "a latency in seconds is wanted")
        return Measured(lower_s=value_s, upper_s=value_s)

    def _failed(self, what: str, why: str) -> Failed:
        return Failed(shorten(f"{self.name} {what}: {why}", self._secrets))


def expression(settings: LatencySettings, objective: Objective, base_url: str) -> str:
    """The PromQL asked for an objective and the server at `base_url`.

    Raises:
        ConfigurationError: the server has to be named in it, and can't be.
    """
    period_s = float(settings.sampling_period_s)
    period = f"{period_s:.0f}s" if period_s.is_integer() else f"{period_s * 1000:.0f}ms"
    query = settings.prometheus_query[objective.metric]
    query = query.replace(QUANTILE, repr(objective.quantile)).replace(PERIOD, period)
    if SERVER not in query:
        return query
    server = server_name(base_url)
    pattern = _SPECIAL.sub(r"[\g<0>]", server)  # no backslash, which would have to be doubled in some quotes only

    def fill(found: re.Match[str]) -> str:
        return found[0] if found["outside"] else found[0].replace(SERVER, pattern if found["regex"] else server)

    return QUOTED.sub(fill, query)


def server_name(base_url: str) -> str:
    """Host and port as Prometheus writes them in the label ``instance``: ``gpu1:8000``, ``[2001:db8::1]:443``.

    Raises:
        ConfigurationError: there is none, or it has a character that no host has.
    """
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        host, port = "", 0
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"The base URL {base_url!r} has no host and port that {SERVER} could stand for")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
