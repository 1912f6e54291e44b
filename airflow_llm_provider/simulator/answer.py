"""The answers of a real vLLM 0.32.0, field by field: whole, and as a stream's chunks.

Owns their shape. Pure. Does not know when a token is there (`simulator.server`), nor why it is that one
(`simulator.model`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import orjson

from airflow_llm_provider.simulator import tokenizer
from airflow_llm_provider.simulator.bodies import event

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_llm_provider.simulator.asked import Asked
    from airflow_llm_provider.simulator.model import Said
    from airflow_llm_provider.simulator.words import Finished

_CREATED: Final = 1795346392
_FINGERPRINT: Final = "vllm-0.32.0-simulated"
_LOGPROB: Final = -1.0


@dataclass(slots=True)
class Choice:
    """One answer to one prompt.

    Attributes:
        index: its place among all.
        prompt: the ids it answers.
        said: its tokens and text.
        finish_reason: why it ended.
    """

    index: int
    prompt: list[int]
    said: Said
    finish_reason: str


class Answer:
    """A request's answer, as it is known from the beginning; what only its end tells is set by `finish`.

    Args:
        asked: the request.
        choices: what is said, in order.
        request_id: from ``X-Request-Id``.
        model: the name under which the server reports.
        details: whether usage tells cached tokens (``--enable-prompt-tokens-details``).
        timed: whether an answer of one choice tells its times (``--enable-per-request-metrics``).
        name: a token as people read it.
    """

    def __init__(
        self,
        asked: Asked,
        choices: list[Choice],
        *,
        request_id: str,
        model: str,
        details: bool,
        timed: bool,
        name: Callable[[int], str] = tokenizer.name,
    ) -> None:
        self.asked = asked
        self.choices = choices
        self._details = details
        self._timed = timed
        self._name = name
        self._cached_tokens = 0
        self._metrics: dict[str, Any] | None = None
        kind = "chatcmpl" if asked.is_chat else "cmpl"
        self._head = {"id": f"{kind}-{request_id}", "object": "", "created": _CREATED, "model": model}

    def finish(self, ends: list[Finished]) -> None:
        """Takes note of the ends of all choices."""
        self._cached_tokens = max(end.cached_tokens for end in ends)
        if self._timed and len(ends) == 1:
            self._metrics = _metrics(ends[0])

    def abort(self) -> None:
        """Turns it into what a vLLM that is told to stop answers: half the text, status 200."""
        for choice in self.choices:
            said = choice.said
            half = len(said.ids) // 2
            choice.said = said._replace(ids=said.ids[:half], pieces=said.pieces[:half], stop_reason=None)
            choice.finish_reason = "abort"

    def whole(self) -> bytes:
        """The unstreamed body."""
        asked = self.asked
        body = {
            **self._head,
            "object": "chat.completion" if asked.is_chat else "text_completion",
            "choices": [self._choice(choice) for choice in self.choices],
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
            "usage": {**self._usage(), "completion_tokens_details": None},
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": self._metrics,
        }
        if self._metrics is not None:
            body["metrics"] = {**self._metrics, "speculative_decoding": None}
        if asked.is_chat:  # completions have them per choice
            ids = self.choices[0].prompt if asked.token_ids else None
            body |= {"prompt_logprobs": None, "prompt_token_ids": ids, "prompt_text": None}
        return orjson.dumps(body)

    def chunks(self) -> list[bytes]:
        """All events of a stream, without the final ``[DONE]``: a token each."""
        events = self.opening()
        for choice in self.choices:
            events += [self.chunk(choice, at, at + 1) for at in range(len(choice.said.ids))]
        return [*events, *self.closing()]

    def opening(self) -> list[bytes]:
        """The events before the first token: none of a completion."""
        if not self.asked.is_chat:
            return []
        ids = self.choices[0].prompt if self.asked.token_ids else None
        beginning = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [
            self._chunk({"index": choice.index, **beginning}, 0, {"prompt_token_ids": ids, "prompt_text": None})
            for choice in self.choices
        ]

    def chunk(self, choice: Choice, begin: int, end: int) -> bytes:
        """The event of some tokens of a choice.

        Args:
            choice: whose.
            begin: the first one's place, from 0.
            end: the place after the last one's.
        """
        asked, said = self.asked, choice.said
        last = end == len(said.ids)
        text = "".join(said.pieces[begin:end])
        token_ids = said.ids[begin:end] if asked.token_ids else None
        told: dict[str, Any] = {
            "index": choice.index,
            "logprobs": self._logprobs(choice, begin, end),
            "finish_reason": choice.finish_reason if last else None,
        }
        if asked.is_chat:
            told |= {"delta": {"content": text}, "token_ids": token_ids}
            if last:
                told["stop_reason"] = said.stop_reason
        else:
            if asked.echo and begin == 0:
                text = tokenizer.text(choice.prompt) + text
            prompt = choice.prompt if asked.token_ids and begin == 0 else None
            reason = said.stop_reason if last else None
            told |= {"text": text, "stop_reason": reason, "prompt_token_ids": prompt, "token_ids": token_ids}
        return self._chunk(told, end, {"system_fingerprint": _FINGERPRINT} if last and not asked.usage else {})

    def closing(self) -> list[bytes]:
        """The events after the last token: the usage, if it was asked for."""
        if not self.asked.usage:
            return []
        body = {**self._head, "object": self._chunks_are(), "choices": [], "usage": self._usage(streamed=True)}
        body["system_fingerprint"] = _FINGERPRINT
        if self._metrics is not None:
            body["metrics"] = {name: value for name, value in self._metrics.items() if value is not None}
        return [event(body)]

    def _chunks_are(self) -> str:
        return "chat.completion.chunk" if self.asked.is_chat else "text_completion"

    def _chunk(self, choice: dict[str, Any], tokens: int, more: dict[str, Any]) -> bytes:
        body = {**self._head, "object": self._chunks_are(), "choices": [choice], **more}
        if self.asked.usage_each and self.asked.usage:
            prompt = self.asked.prompt_tokens
            usage = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
            body["usage"] = {**usage, "completion_tokens_details": None} if self.asked.is_chat else usage
        return event(body)

    def _choice(self, choice: Choice) -> dict[str, Any]:
        asked, said = self.asked, choice.said
        text = "".join(said.pieces)
        told: dict[str, Any] = {
            "index": choice.index,
            "logprobs": self._logprobs(choice, 0, len(said.ids)),
            "finish_reason": choice.finish_reason,
            "stop_reason": said.stop_reason,
            "token_ids": said.ids if asked.token_ids else None,
            "routed_experts": None,
        }
        if not asked.is_chat:
            prompt = choice.prompt if asked.token_ids else None
            text = tokenizer.text(choice.prompt) + text if asked.echo else text
            return {**told, "text": text, "prompt_logprobs": None, "prompt_token_ids": prompt}
        message = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return {**told, "message": message}

    def _logprobs(self, choice: Choice, begin: int, end: int) -> dict[str, Any] | None:
        """The same for every token: the simulated model has no doubts to tell of."""
        if self.asked.logprobs is None:
            return None
        names = [self._name(token) for token in choice.said.ids[begin:end]]
        if self.asked.is_chat:
            listed = [{"token": name, "logprob": _LOGPROB, "bytes": list(name.encode())} for name in names]
            return {"content": [{**one, "top_logprobs": [one] * self.asked.logprobs} for one in listed]}
        before = sum(map(len, choice.said.pieces[:begin]))
        offsets = [*accumulate(map(len, names), initial=before)]
        return {
            "text_offset": offsets[:-1],
            "token_logprobs": [_LOGPROB] * len(names),
            "tokens": names,
            "top_logprobs": [{name: _LOGPROB} for name in names],
        }

    def _usage(self, *, streamed: bool = False) -> dict[str, Any]:
        """Tokens. In a stream, fields without a value are left out."""
        completion_tokens = sum(len(choice.said.ids) for choice in self.choices)
        usage: dict[str, Any] = {
            "prompt_tokens": self.asked.prompt_tokens,
            "total_tokens": self.asked.prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
        }
        details: dict[str, Any] | None = None
        if self._details:
            created = 0 if self.asked.is_chat else None
            details = {
                "cached_tokens": self._cached_tokens,
                "created_cache_tokens": created,
                "multimodal_tokens": None,
            }
            if streamed:
                details = {name: value for name, value in details.items() if value is not None}
        if details is not None or not streamed:
            usage["prompt_tokens_details"] = details
        return usage


def _metrics(end: Finished) -> dict[str, Any]:
    """A request's own times. The first one begins when the request leaves the queue."""
    return {
        "time_to_first_token_ms": end.prefill_s * 1e3,
        "generation_time_ms": end.decode_s * 1e3,
        "queue_time_ms": end.queued_s * 1e3,
        "mean_itl_ms": end.mean_itl_s * 1e3 if end.generated_tokens > 1 else None,
        "tokens_per_second": end.generated_tokens / end.inference_s,
    }
