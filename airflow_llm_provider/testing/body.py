"""The bodies a real vLLM 0.32.0 sends, field by field.

Owns their shape and the echoed text in them. Pure. Does not know when which one is sent (`testing.server`).
"""

from __future__ import annotations

from typing import Any

import orjson

CHAT_PATH = "/v1/chat/completions"
ECHO_CHARS = 200
"""As much of the prompt's text as comes back."""

_CHARS_PER_TOKEN = 4


def error(message: str, *, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    """The error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


BUSY = error(
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
    kind="Service Unavailable",
    code=503,
)
ENGINE_DEAD = error(
    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    kind="Internal Server Error",
    code=500,
)
DRAINING = error("cannot schedule new futures after shutdown", kind="Internal Server Error", code=500)
UNAUTHORISED = {"error": "Unauthorized"}
RATE_LIMITED = {"error": {"message": "rate limit exceeded", "type": "rate_limit_error", "param": None, "code": "429"}}
NO_ROUTE = {"detail": "Not Found"}
WRONG_METHOD = {"detail": "Method Not Allowed"}


def unknown_model(asked: str, served: str) -> dict[str, Any]:
    """404 for a model that is not served."""
    return error(
        f"The model `{asked}` does not exist. Valid aliases: {served}.", kind="NotFoundError", code=404, param="model"
    )


def too_long(limit_tokens: int, tokens: int) -> dict[str, Any]:
    """400 for a prompt beyond the context length."""
    return error(
        f"This model's maximum context length is {limit_tokens} tokens. However, your prompt contains at least "
        f"{tokens} input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
        f"of the input prompt. (parameter=input_tokens, value={tokens})",
        kind="BadRequestError",
        code=400,
        param="input_tokens",
    )


def invalid(loc: str, kind: str, message: str) -> dict[str, Any]:
    """400 for a body that is not valid JSON or of the wrong shape."""
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{loc}', 'msg': '{message}'}}"
    return error(text, kind="Bad Request", code=400, param=loc)


def models(names: tuple[str, ...], root: str, max_model_len: int) -> dict[str, Any]:
    """The answer of ``/v1/models``."""
    return {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": 1795346416,
                "owned_by": "vllm",
                "root": root,
                "parent": None,
                "max_model_len": max_model_len,
                "permission": [],
            }
            for name in names
        ],
    }


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


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + orjson.dumps(value) + b"\n\n"
