"""The stub's answers: vLLM's shape around an echo.

Owns the echoed text and how much of vLLM's shape is around it. Pure. Does not know when one is sent (`testing.server`),
nor what errors look like (`simulator.bodies`).
"""

from __future__ import annotations

from typing import Any

import orjson

from airflow_llm_provider.simulator.bodies import BUSY, CHAT_PATH, ENGINE_DEAD, event

__all__ = ["BUSY", "CHAT_PATH", "ECHO_CHARS", "ENGINE_DEAD", "Echo", "event", "prompt_text", "prompt_tokens"]

ECHO_CHARS = 200
"""As much of the prompt's text as comes back."""

_CHARS_PER_TOKEN = 4


def prompt_text(request: dict[str, Any]) -> str:
    """The text of the last message, or the prompt."""
    if "prompt" in request:
        prompt = request["prompt"]
        return prompt if isinstance(prompt, str) else orjson.dumps(prompt).decode()
    messages = request.get("messages") or [{}]
    content = messages[-1].get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


def prompt_tokens(text: str) -> int:
    """A plausible count: 4 characters each."""
    return len(text) // _CHARS_PER_TOKEN + 1


class Echo:
    """The right answer to a request: "echo: " and the beginning of its text, cut to ``max_tokens`` words.

    Args:
        path: the route asked.
        request: the request's body.
        request_id: from ``X-Request-Id``.
        model: the served name.
    """

    def __init__(self, *, path: str, request: dict[str, Any], request_id: str, model: str) -> None:
        self.is_chat = path == CHAT_PATH
        text = prompt_text(request)
        words = f"echo: {text[:ECHO_CHARS]}".split(" ")
        limit = request.get("max_tokens") or request.get("max_completion_tokens") or len(words)
        self.words = words[:limit]
        self.finish_reason = "length" if limit < len(words) else "stop"
        self.prompt_tokens = prompt_tokens(text)
        self.count = request.get("n") or 1
        self.logprobs = bool(request.get("logprobs"))
        self.include_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        self.model = model
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{request_id}"

    def abort(self) -> None:
        """Turns it into what a vLLM that is told to stop answers: half the text, status 200."""
        self.words = self.words[: len(self.words) // 2]
        self.finish_reason = "abort"

    def whole(self) -> bytes:
        """The unstreamed body."""
        answer = {
            "id": self.id,
            "object": "chat.completion" if self.is_chat else "text_completion",
            "created": 1795346392,
            "model": self.model,
            "choices": [self._choice(index) for index in range(self.count)],
            "service_tier": None,
            "system_fingerprint": "vllm-0.32.0-stub",
            "usage": self._usage(),
            "kv_transfer_params": None,
            "metrics": None,
        }
        if self.is_chat:  # completions have them per choice
            answer |= {"prompt_logprobs": None, "prompt_token_ids": None}
        return orjson.dumps(answer)

    def chunks(self) -> list[bytes]:
        """The events of a stream, without the final ``[DONE]``: a token each, then usage where it was asked for."""
        events = []
        for index in range(self.count):
            if self.is_chat:
                events.append(self._chunk(index, {"role": "assistant", "content": ""}, None))
            for number, word in enumerate(self.words):
                last = number == len(self.words) - 1
                piece = word if last else f"{word} "
                events.append(self._chunk(index, {"content": piece}, self.finish_reason if last else None))
        if self.include_usage:
            events.append(event({**self._head(), "choices": [], "usage": self._usage()}))
        return events

    def _head(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": 1795346392, "model": self.model}

    def _chunk(self, index: int, delta: dict[str, str], finish_reason: str | None) -> bytes:
        piece: dict[str, Any] = {"delta": delta} if self.is_chat else {"text": delta["content"]}
        choice = {"index": index, **piece, "logprobs": None, "finish_reason": finish_reason, "token_ids": None}
        return event({**self._head(), "choices": [choice]})

    def _choice(self, index: int) -> dict[str, Any]:
        text = " ".join(self.words)
        choice: dict[str, Any] = {
            "index": index,
            "logprobs": self._logprobs() if self.logprobs else None,
            "finish_reason": self.finish_reason,
            "stop_reason": None,
            "token_ids": None,
        }
        if not self.is_chat:
            return {**choice, "text": text, "prompt_logprobs": None, "prompt_token_ids": None}
        message = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return {**choice, "message": message}

    def _logprobs(self) -> dict[str, Any]:
        if self.is_chat:
            return {"content": [{"token": word, "logprob": -1.0, "top_logprobs": []} for word in self.words]}
        return {"tokens": self.words, "token_logprobs": [-1.0] * len(self.words), "top_logprobs": None}

    def _usage(self) -> dict[str, Any]:
        completion_tokens = len(self.words) * self.count
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 0, "multimodal_tokens": None},
            "completion_tokens_details": None,
        }
