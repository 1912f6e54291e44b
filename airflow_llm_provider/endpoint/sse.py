"""A whole ``text/event-stream`` body, put together into the body the same request would have got unstreamed.

Owns the event framing and the joining of deltas. Does not know what the body means: `endpoint.wire` reads it exactly
as it reads an unstreamed one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

_DONE = b"[DONE]"
_TEXTS = ("content", "reasoning_content", "reasoning")


def assemble(body: bytes) -> dict[str, Any] | None:
    """Joins a stream.

    Returns:
        The unstreamed body; or the server's ``{"error": ...}`` event, wherever in the stream it stands, because half
        an answer is none; or None when an event is not JSON, when a choice never finished or when ``[DONE]`` is
        missing: something between the server and here cut the stream.
    """
    try:
        return _join(_events(body))
    except (AttributeError, TypeError, ValueError):  # events, but not of a completion
        return None


def _join(events: Iterator[bytes]) -> dict[str, Any] | None:
    choices: dict[int, _Choice] = {}
    answer_id: Any = None
    usage: Any = None
    metrics: Any = None
    done = False
    for data in events:
        if data == _DONE:
            done = True
            break
        event = orjson.loads(data)
        if event.get("error") or event.get("object") == "error":
            return dict(event)
        answer_id = event.get("id") or answer_id
        usage = event.get("usage") or usage
        metrics = event.get("metrics") or metrics
        for chunk in event.get("choices") or ():
            choices.setdefault(chunk.get("index", 0), _Choice()).add(chunk)
    if not done or any(choice.finish_reason is None for choice in choices.values()):
        return None
    joined = [choices[index].whole(index) for index in sorted(choices)]
    return {"id": answer_id, "choices": joined, "usage": usage, "metrics": metrics}


def _events(body: bytes) -> Iterator[bytes]:
    """The data of each event. Lines end with LF, CRLF or CR; an event's lines are joined by LF."""
    lines: list[bytes] = []
    for line in body.splitlines():
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            yield b"\n".join(lines)
            lines = []
    # an event without the blank line that ends it was cut, and is dropped, as the standard says


class _Choice:
    """One choice while its chunks come in."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.text: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.arguments: dict[int, list[str]] = {}  # of those, in pieces: an answer may have a million
        self.logprobs: list[Any] = []
        self.token_ids: list[int] = []
        self.is_chat = False

    def add(self, chunk: dict[str, Any]) -> None:
        """Takes one chunk's choice."""
        self.finish_reason = chunk.get("finish_reason") or self.finish_reason
        self.text.append(chunk.get("text") or "")
        self.token_ids += chunk.get("token_ids") or ()
        if chunk.get("logprobs"):
            self.logprobs.append(chunk["logprobs"])
        delta = chunk.get("delta")
        if delta is None:
            return
        self.is_chat = True
        for name in _TEXTS:
            if delta.get(name):
                self.texts.setdefault(name, []).append(delta[name])
        for call in delta.get("tool_calls") or ():
            self._add_call(call)

    def _add_call(self, call: dict[str, Any]) -> None:
        """A call's first delta carries id, type and name; later ones the next piece of its arguments."""
        number = call.get("index", 0)
        known = self.tool_calls.setdefault(number, {"id": None, "type": "function", "function": {"name": None}})
        known["id"] = call.get("id") or known["id"]
        known["type"] = call.get("type") or known["type"]
        function = call.get("function") or {}
        known["function"]["name"] = function.get("name") or known["function"]["name"]
        self.arguments.setdefault(number, []).append(function.get("arguments") or "")

    def whole(self, index: int) -> dict[str, Any]:
        """The choice as an unstreamed answer has it."""
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": self.finish_reason,
            "logprobs": _join_logprobs(self.logprobs),
            "token_ids": self.token_ids or None,
        }
        if not self.is_chat:
            return choice | {"text": "".join(self.text)}
        texts = {name: "".join(parts) for name, parts in self.texts.items()}
        for number, pieces in self.arguments.items():
            self.tool_calls[number]["function"]["arguments"] = "".join(pieces)
        calls = [self.tool_calls[number] for number in sorted(self.tool_calls)]
        content = texts.pop("content", None if calls or texts else "")
        return choice | {"message": {"role": "assistant", "content": content, "tool_calls": calls, **texts}}


def _join_logprobs(parts: list[Any]) -> dict[str, Any] | None:
    """Chat's ``{"content": [...]}``, completions' ``{"tokens": [...], "token_logprobs": [...], ...}``: list by list."""
    if not parts:
        return None
    joined: dict[str, Any] = {}
    for part in parts:
        for name, values in part.items():
            if values is not None:
                joined.setdefault(name, []).extend(values)
    return joined
