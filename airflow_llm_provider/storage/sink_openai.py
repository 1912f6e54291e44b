"""A run's rows as OpenAI's Batch API writes them: an output file, and one of errors.

Owns the shape, which is that of https://platform.openai.com/docs/guides/batch. What a part's line does not keep of an
answer is made up so that it is well formed: its id, and when it was created.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from airflow_llm_provider.core.prompt import PATHS
from airflow_llm_provider.storage import layout
from airflow_llm_provider.storage.file_source import fields_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_llm_provider.storage.sink import FinishedRows


class OpenAISink:
    """``output-<fingerprint>.jsonl`` has each row that has an answer, ``errors-<fingerprint>.jsonl`` each other one."""

    name = "openai_batch"

    def spec(self) -> dict[str, Any]:
        """See `Sink.spec`."""
        return {}

    def write(self, run: FinishedRows) -> dict[str, Any]:
        """See `Sink.write`; an error file is written where there are errors."""
        fingerprint = run.document.fingerprint
        output, errors = layout.openai_output(fingerprint), layout.openai_errors(fingerprint)
        counts = [0, 0]
        run.store.write_from(output, _encoded(run, counts, answered=True))
        if counts[1]:
            run.store.write_from(errors, _encoded(run, counts, answered=False))
        else:
            run.store.delete([errors])  # of an end before a replay
        uri = run.store.uri
        return {"output": f"{uri}/{output}", "errors": f"{uri}/{errors}" if counts[1] else None}


def _encoded(run: FinishedRows, counts: list[int], *, answered: bool) -> Iterator[bytes]:
    """The lines of one of the files; `counts` is how many have an answer, and how many have not."""
    counts[:] = [0, 0]
    created = int(datetime.fromisoformat(run.document.created_at).timestamp())
    for chunk, rows in run.chunks():
        urls = (
            [run.url] * len(rows)
            if run.url is not None
            else [fields_of(row.raw).get("url") for row in run.inputs(chunk)]
        )
        lines = []
        for row, url in zip(rows, urls, strict=True):
            has_answer = row["status"] != "errored"
            counts[not has_answer] += 1
            if has_answer is answered:
                lines.append(_line(row, url, run, created))
        yield b"".join(lines)


def _line(row: dict[str, Any], url: str | None, run: FinishedRows, created: int) -> bytes:
    request_id = f"{run.document.fingerprint}-{row['index']}"
    line: dict[str, Any] = {
        "id": f"batch_req_{request_id}",
        "custom_id": row["custom_id"],
        "response": None,
        "error": None,
    }
    if row["status"] != "errored":
        line["response"] = _response(200, request_id, _answer(row, url, request_id, run, created))
        try:
            return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # nested as deeply as a part's line may be, and here it is deeper
            bare = {**row, "tool_calls": None, "choices": None}
            line["response"] = _response(200, request_id, _answer(bare, url, request_id, run, created))
            return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    error = row["error"]
    if error["http_status"] is not None:
        body = {"error": {"message": error["message"], "type": error["kind"], "param": None, "code": error["kind"]}}
        line["response"] = _response(error["http_status"], request_id, body)
    else:
        line["error"] = {"code": error["kind"], "message": error["message"]}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _response(status: int, request_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": request_id, "body": body}


def _answer(row: dict[str, Any], url: str | None, request_id: str, run: FinishedRows, created: int) -> dict[str, Any]:
    usage = row["usage"]
    if url is not None and url in _ITEMS:
        return _pooled(row, url, request_id, run, created)
    is_chat = url != PATHS["completions"]
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{request_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": run.document.served.get("model"),
        "choices": row["choices"] or [_choice(row, is_chat=is_chat)],
        "usage": {
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
            "prompt_tokens_details": {"cached_tokens": usage["cached_tokens"]},
        },
    }
    return {**body, "system_fingerprint": None} if is_chat else body


def _pooled(row: dict[str, Any], url: str, request_id: str, run: FinishedRows, created: int) -> dict[str, Any]:
    """What vLLM's run_batch has of routes that generate nothing."""
    tokens = row["usage"]["prompt_tokens"]
    several = isinstance(row["parsed"], list) and not (url == PATHS["embeddings"] and _is_vector(row["parsed"]))
    values = row["parsed"] if several else [row["parsed"]]
    body = {
        "object": "list",
        "data": [_ITEMS[url](number, value) for number, value in enumerate(values)],
        "model": run.document.served.get("model"),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return body if url == PATHS["embeddings"] else {"id": request_id, "created": created, **body}


def _is_vector(value: list[Any]) -> bool:
    return not isinstance(value[0], list)


_ITEMS: Mapping[str, Callable[[int, Any], dict[str, Any]]] = {
    PATHS["embeddings"]: lambda number, value: {"object": "embedding", "index": number, "embedding": value},
    PATHS["classify"]: lambda number, value: {"index": number, **value, "num_classes": len(value["probs"])},
    PATHS["score"]: lambda number, value: {"index": number, "object": "score", "score": value},
}


def _choice(row: dict[str, Any], *, is_chat: bool) -> dict[str, Any]:
    ending = {"index": 0, "finish_reason": row["finish_reason"] or "stop", "logprobs": None}
    if not is_chat:
        return {**ending, "text": row["output"] or ""}
    message = {"role": "assistant", "content": row["output"], "refusal": None}
    if row["reasoning"] is not None:
        message["reasoning_content"] = row["reasoning"]
    if row["tool_calls"] is not None:
        message["tool_calls"] = row["tool_calls"]
    return {**ending, "message": message}
