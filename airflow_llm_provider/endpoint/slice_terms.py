"""Whether a server is one to slice rows on: its context, its prefix cache, and whether it bounds answers by itself.

Owns what is asked and how the answers are read. Does not know what follows (`core.slice_rules`), nor when it is asked.

Four looks, none of which makes the server compute a token:

- ``vllm:cache_config_info`` says whether prefixes are cached. Without that each slice would compute all before it anew.
- ``/tokenize`` says how long the context is.
- ``/detokenize`` is asked for the text of what that said: rows in slices need it at their boundaries, and one that does
  not work (hidden, or broken behind a gateway) would cost each of them its first slice.
- A request for more ``min_tokens`` than any server gives is refused, and vLLM's words say which ``max_tokens`` would be
  in force: less than there is room for where its ``generation_config.json``, or its operator, bounds answers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.core.retry import Failure
from airflow_llm_provider.core.slice_rules import CHAT_PATH, SliceTerms
from airflow_llm_provider.endpoint.exposition import Page
from airflow_llm_provider.endpoint.failure import classify, error_message, read_json

if TYPE_CHECKING:
    from airflow_llm_provider.endpoint.client import EndpointClient
    from airflow_llm_provider.endpoint.failure import Answer

CACHE = "vllm:cache_config_info"
CHOSEN = f"/metrics/?name[]={CACHE}"
WHOLE = "/metrics"

_NEVER = 2**31 - 1
_NOT_NOW = frozenset({408, 425, 429})
_BOUND = re.compile(r"min_tokens must be less than or equal to max_tokens=(\d+)")


async def read_terms(client: EndpointClient, *, model: str, path: str, slice_tokens: int) -> SliceTerms | Failure | str:
    """The terms on which rows are sliced; why none are, or a `Failure` where that can't be told just now.

    Args:
        client: asks; already entered.
        model: the model that rows ask for.
        path: the rows' route.
        slice_tokens: tokens of a slice.
    """
    caching = await _caching(client)
    if caching is not None:
        return caching
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "."}]} if path == CHAT_PATH else {"prompt": "."}
    answer = await _ask(client, "/tokenize", {"model": model, **prompt})
    if isinstance(answer, Failure):
        return answer
    match read_json(answer.body):
        case {"count": int(count), "max_model_len": int(longest), "tokens": list(tokens)} if (
            answer.status == 200 and longest > count  # noqa: PLR2004
        ):
            mute = await _mute(client, {"model": model, "tokens": tokens})
            if mute is not None:
                return mute
            room = longest - count
            asked = {} if path == CHAT_PATH else {"max_tokens": room}  # a chat has what room there is if it names none
            most = await _in_force(client, path, {"model": model, **prompt, **asked, "min_tokens": _NEVER})
            if not isinstance(most, int):
                return most
            return SliceTerms(
                max_model_len=longest, most_tokens=most if most < room else None, slice_tokens=slice_tokens
            )
        case _:
            return f"its /tokenize answers with HTTP {answer.status} and no length of the context"


async def _ask(client: EndpointClient, path: str, body: dict[str, Any] | None = None) -> Answer | Failure:
    """An answer that says something of the server: not that it is busy or broken just now."""
    answer = await client.ask(path, None if body is None else orjson.dumps(body))
    if not isinstance(answer, Failure) and (answer.status in _NOT_NOW or answer.status >= 500):  # noqa: PLR2004
        return classify(answer)
    return answer


async def _caching(client: EndpointClient) -> Failure | str | None:
    """None where prefixes are cached."""
    answer = await _ask(client, CHOSEN)
    if not isinstance(answer, Failure) and not _cached(answer):
        answer = await _ask(client, WHOLE)
    if isinstance(answer, Failure):
        return answer
    said = _cached(answer)
    if not said:
        return "it does not say whether it caches prefixes"
    return None if all(each == "True" for each in said) else "it caches no prefixes"


def _cached(answer: Answer) -> list[str | None]:
    """What each engine says of itself."""
    if answer.status != 200:  # noqa: PLR2004
        return []
    return [series.labels.get("enable_prefix_caching") for series in Page(answer.body, [CACHE]).series(CACHE)]


async def _mute(client: EndpointClient, body: dict[str, Any]) -> Failure | str | None:
    """None where it says the text of tokens."""
    answer = await _ask(client, "/detokenize", body)
    if isinstance(answer, Failure):
        return answer
    match read_json(answer.body):
        case {"prompt": str()} if answer.status == 200:  # noqa: PLR2004
            return None
        case _:
            return f"its /detokenize answers with HTTP {answer.status} and no text"


async def _in_force(client: EndpointClient, path: str, body: dict[str, Any]) -> int | Failure | str:
    """The ``max_tokens`` that a refused request would have had."""
    answer = await _ask(client, path, body)
    if isinstance(answer, Failure):
        return answer
    bound = _BOUND.search(error_message(read_json(answer.body)))
    if answer.status != 400 or bound is None or not int(bound[1]):  # noqa: PLR2004
        return "it does not say whether it bounds answers by itself"
    return int(bound[1])
