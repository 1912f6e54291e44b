"""The stub's answers: vLLM's shape around an echo.

Owns what is echoed. Pure. Does not know when an answer is sent (`testing.server`), its shape (`simulator.answer`), nor
what errors look like (`simulator.bodies`).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import orjson

from airflow_llm_provider.simulator import bodies
from airflow_llm_provider.simulator.answer import Answer, Choice
from airflow_llm_provider.simulator.asked import Asked
from airflow_llm_provider.simulator.bodies import BUSY, CHAT_PATH
from airflow_llm_provider.simulator.model import Ends, Said
from airflow_llm_provider.testing.instance import least_instance

__all__ = ["BUSY", "CHAT_PATH", "ECHO_CHARS", "Echo", "prompt_text", "prompt_tokens"]

ECHO_CHARS = 200
"""As much of the prompt's text as comes back."""

VECTOR_LENGTH = 8
"""Of what a text is embedded to."""

_CHARS_PER_TOKEN = 4
_NOTHING_ENDS_IT: Final = Ends()


def prompt_text(request: dict[str, Any]) -> str:
    """The text of the last message, or the prompt."""
    if named := [request[name] for name in ("prompt", "input", "text_1") if name in request]:
        prompt = named[0]
        return prompt if isinstance(prompt, str) else orjson.dumps(prompt).decode()
    messages = request.get("messages") or [{}]
    content = messages[-1].get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


def prompt_tokens(text: str) -> int:
    """A plausible count: 4 characters each."""
    return len(text) // _CHARS_PER_TOKEN + 1


def _words(request: dict[str, Any], text: str) -> list[str]:
    match request.get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return [orjson.dumps(least_instance(schema)).decode()]
        case _:
            return f"echo: {text[:ECHO_CHARS]}".split(" ")


def pooled(path: str, request: dict[str, Any], *, model: str) -> dict[str, Any]:
    """The right answer of a route that generates nothing: numbers that differ with the text."""
    match path:
        case bodies.EMBEDDINGS_PATH:
            texts = _several(request["input"])
            items: list[dict[str, Any]] = [
                {"object": "embedding", "embedding": [each / 256 for each in _digest(text)]} for text in texts
            ]
        case bodies.CLASSIFY_PATH:
            texts = _several(request["input"])
            items = [_classified(_digest(text)[0] / 256) for text in texts]
        case _:
            texts = [f"{request['text_1']} {text}" for text in _several(request.get("text_2", ""))]
            items = [{"object": "score", "score": _digest(text)[0] / 256} for text in texts]
    tokens = sum(prompt_tokens(str(text)) for text in texts)
    return {
        "id": "pooled-stub",
        "object": "list",
        "model": model,
        "data": [{"index": number, **item} for number, item in enumerate(items)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


def _several(texts: str | list[Any]) -> list[Any]:
    return [texts] if isinstance(texts, str) else texts


def _digest(text: Any) -> bytes:
    return hashlib.sha256(orjson.dumps(text)).digest()[:VECTOR_LENGTH]


def _classified(share: float) -> dict[str, Any]:
    return {"label": "LABEL_1" if share >= 0.5 else "LABEL_0", "probs": [1 - share, share], "num_classes": 2}  # noqa: PLR2004


class Echo(Answer):
    """The right answer to a request: "echo: " and the beginning of its text, cut to ``max_tokens`` words.

    Where ``response_format`` names a schema, it is the schema's least instance, as one word.

    Args:
        path: the route asked.
        request: the request's body.
        request_id: from ``X-Request-Id``.
        model: the served name.
    """

    def __init__(self, *, path: str, request: dict[str, Any], request_id: str, model: str) -> None:
        text = prompt_text(request)
        words = _words(request, text)
        limit = request.get("max_tokens") or request.get("max_completion_tokens") or len(words)
        stopped = limit >= len(words)
        words = words[:limit]
        pieces = [word + " " for word in words[:-1]] + words[-1:]
        said = Said(list(range(len(words))), pieces, stopped, None)
        asked = Asked(
            is_chat=path == CHAT_PATH,
            prompts=[[0] * prompt_tokens(text)],
            count=request.get("n") or 1,
            max_tokens=limit,
            ends=_NOTHING_ENDS_IT,
            seed=None,
            priority=0,
            streamed=bool(request.get("stream")),
            usage=bool((request.get("stream_options") or {}).get("include_usage")),
            usage_each=False,
            token_ids=False,
            logprobs=0 if request.get("logprobs") else None,
            echo=False,
        )
        reason = "stop" if stopped else "length"
        choices = [Choice(index, asked.prompts[0], said, reason) for index in range(asked.count)]
        super().__init__(
            asked, choices, request_id=request_id, model=model, details=True, timed=False, name=words.__getitem__
        )
