"""From a row to the request it asks for: prompts are compiled once and rendered per row in a sandbox.

Owns the templates, the sandbox and the shape of the request body. Does not know where rows come from, nor how a body
is encoded or sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from airflow_llm_provider.core.identity import canonical
from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Endpoint = Literal["chat", "completions", "embeddings", "classify", "score"]

PATHS: Mapping[Endpoint, str] = MappingProxyType(
    {
        "chat": "/v1/chat/completions",
        "completions": "/v1/completions",
        "embeddings": "/v1/embeddings",
        "classify": "/classify",
        "score": "/v1/score",
    }
)
"""Routes below a server's root that a row may ask for."""

_SHOWN_CHARS = 500
"""Of what a row says, in an error: a row may have megabytes."""

_GLOBALS = frozenset({"dict", "namespace", "range"})
"""Jinja's own functions that prompts may use; the sandbox bounds `range`."""

_RESERVED = frozenset({"model", "messages", "prompt", "input", "text_1", "text_2"})

_RESERVED_OF_SCORE = frozenset({"data_1", "data_2", "queries", "documents", "items"})
"""Other names of what is scored."""

_TEXT_FIELDS: Mapping[Endpoint, str] = MappingProxyType(
    {"completions": "prompt", "embeddings": "input", "classify": "input", "score": "text_1"}
)
"""Where a body that is no chat has its text."""


class RowRejectedError(ValueError):
    """A row that cannot become a request; its text says why."""


class _NullInPromptError(TemplateError):
    pass


def _refuse_null(value: object) -> object:
    if value is None:
        raise _NullInPromptError("it prints a null; write {{ … or '' }} where an empty text will do")
    return value


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which ``row.items`` is the row's field and only then a dict's method."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpec:
    """What a DAG says of its requests; everything in it shapes the answers.

    Attributes:
        endpoint: one of `PATHS`.
        prompt: template of the user's message, of the prompt, or of the text to embed, classify or score; None where
            rows are OpenAI batch lines.
        document: template of the text that the prompt is scored against.
        messages: instead of `prompt`, whole messages whose ``content`` texts are templates.
        system_prompt: template of a system message put first.
        parameters: body fields sent as they are, such as ``temperature``; ``extra_body`` is merged in already.
        context: plain values of the run that templates may use beside ``row``.
        renames_model: batch lines are sent with the run's model, whatever model they name.

    Raises:
        ConfigurationError: when the parts contradict each other.
    """

    endpoint: Endpoint = "chat"
    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    system_prompt: str | None = None
    document: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    renames_model: bool = False

    def __post_init__(self) -> None:
        if self.endpoint not in PATHS:
            raise ConfigurationError(f"endpoint is one of {', '.join(PATHS)}, not {self.endpoint!r}")
        if self.prompt is not None and self.messages is not None:
            raise ConfigurationError("Give prompt or messages, not both")
        if self.endpoint != "chat" and (self.messages is not None or self.system_prompt is not None):
            raise ConfigurationError(f"endpoint={self.endpoint!r} takes prompt; messages and system_prompt are chat's")
        if (self.endpoint == "score" and self.templated) != (self.document is not None):
            raise ConfigurationError("endpoint='score' takes prompt and document, and no other endpoint a document")
        if not self.templated and (self.system_prompt is not None or self.parameters):
            named = ["system_prompt"] if self.system_prompt is not None else []
            raise ConfigurationError(
                f"{', '.join([*named, *self.parameters])}: without prompt or messages, rows are OpenAI batch lines and "
                "are sent as they are, so this would have no effect. Set a prompt, or put it into the rows' bodies"
            )
        try:
            canonical(self.parameters)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"extra_body or a parameter holds what JSON cannot say: {error}") from error
        reserved = _RESERVED | (_RESERVED_OF_SCORE if self.endpoint == "score" else frozenset())
        if reserved := reserved & self.parameters.keys():
            raise ConfigurationError(f"extra_body may not hold {', '.join(sorted(reserved))}: the operator sets it")

    @property
    def templated(self) -> bool:
        """Whether requests are made from templates rather than taken from the rows."""
        return self.prompt is not None or self.messages is not None


class RequestTemplate:
    """Compiled templates: turns rows into request bodies.

    Args:
        spec: what the DAG says.
        model: the model named in each body.

    Raises:
        ConfigurationError: when a template does not parse or uses a name that does not exist.
    """

    def __init__(self, spec: RequestSpec, *, model: str) -> None:
        self._spec = spec
        self._model = model
        self._environment = _Environment(undefined=StrictUndefined, finalize=_refuse_null, autoescape=False)
        self._environment.globals = {name: self._environment.globals[name] for name in _GLOBALS}
        self._names: set[str] = set()
        self._system = self._compile("system_prompt", spec.system_prompt)
        self._prompt = self._compile("prompt", spec.prompt)
        self._document = self._compile("document", spec.document)
        self._messages = [
            (dict(message), self._content(f"messages[{n}].content", message.get("content")))
            for n, message in enumerate(_checked(spec.messages or ()))
        ]
        self._context = {name: spec.context[name] for name in self._names - {"row"}}

    @property
    def has_parts(self) -> bool:
        """Whether a message has templates in the parts of its content, where texts were once sent as they stood."""
        return any(not isinstance(content, Template) and _holds_template(content) for _, content in self._messages)

    def used_context(self) -> dict[str, Any]:
        """The run's values that the templates really use: they shape the answers, the others do not."""
        return dict(self._context)

    def build(self, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The route and body for `row`.

        Raises:
            RowRejectedError: when the row lacks what the template names, or is no usable batch line.
        """
        if not self._spec.templated:
            return self._batch_line(row)
        body: dict[str, Any] = {"model": self._model}
        if self._spec.endpoint == "chat":
            body["messages"] = self._chat(row)
        else:
            body[_TEXT_FIELDS[self._spec.endpoint]] = self._render(self._prompt, row)
        if self._document is not None:
            body["text_2"] = self._render(self._document, row)
        body.update(self._spec.parameters)
        return PATHS[self._spec.endpoint], body

    def _chat(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self._system is not None:
            messages.append({"role": "system", "content": self._render(self._system, row)})
        if self._prompt is not None:
            messages.append({"role": "user", "content": self._render(self._prompt, row)})
        for message, content in self._messages:
            messages.append({**message, "content": self._filled(content, row)} if "content" in message else message)
        return messages

    def _batch_line(self, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        body, url = row.get("body"), row.get("url")
        if not isinstance(body, dict) or not isinstance(url, str):
            raise RowRejectedError(
                "no prompt is set and the row is no OpenAI batch line (custom_id, method, url, body); "
                f"its fields are: {_fields(row)}"
            )
        if url not in PATHS.values():
            raise RowRejectedError(f"its url {url[:_SHOWN_CHARS]!r} is none of {', '.join(PATHS.values())}")
        if (method := row.get("method", "POST")) != "POST":
            shown = repr(method[:_SHOWN_CHARS]) if isinstance(method, str) else f"a {type(method).__name__}"
            raise RowRejectedError(f"its method is {shown}, not POST")
        return url, body if "model" in body and not self._spec.renames_model else {**body, "model": self._model}

    def _content(self, name: str, content: Any, *, inside: bool = False) -> Any:
        """A message's content, with a template in the place of each text in it that is one."""
        match content:
            case str():
                return self._compile(name, content) if not inside or _marked(content) else content
            case list() | tuple():
                return [self._content(f"{name}[{n}]", each, inside=True) for n, each in enumerate(content)]
            case dict():
                return {key: self._content(f"{name}.{key}", each, inside=True) for key, each in content.items()}
        return content

    def _filled(self, content: Any, row: Mapping[str, Any]) -> Any:
        match content:
            case Template():
                return self._render(content, row)
            case list():
                return [self._filled(each, row) for each in content]
            case dict():
                return {key: self._filled(each, row) for key, each in content.items()}
        return content

    def _compile(self, name: str, source: str | None) -> Template | None:
        if source is None:
            return None
        try:
            tree = self._environment.parse(source)
            template = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigurationError(f"{name} is no valid template: {error.message} (line {error.lineno})") from error
        template.globals = dict(template.globals)  # each render copies them: 10 µs from jinja's ChainMap, 1 from a dict
        names = meta.find_undeclared_variables(tree)
        names -= _GLOBALS
        if unknown := names - {"row"} - self._spec.context.keys():
            known = ", ".join(["row", *sorted(self._spec.context)])
            raise ConfigurationError(
                f"{name} uses {', '.join(sorted(unknown))}, which does not exist; it may use: {known}"
            )
        self._names |= names
        return template

    def _render(self, template: Template | None, row: Mapping[str, Any]) -> str:
        if template is None:  # `build` asks for a prompt's only where the spec has one
            raise AssertionError
        try:
            return template.render(self._context, row=row)
        except TemplateError as error:
            raise RowRejectedError(
                f"the prompt cannot be rendered: {_cut(str(error.message))}; the row's fields are: {_fields(row)}"
            ) from error
        except Exception as error:  # a template may do anything wrong with a value: divide it, index it, …
            raise RowRejectedError(
                f"the prompt cannot be rendered: {type(error).__name__}: {_cut(str(error))}; "
                f"the row's fields are: {_fields(row)}"
            ) from error


def _checked(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise ConfigurationError(f"messages[{number}] has no role; a message is {{'role': …, 'content': …}}")
    return messages


def _holds_template(content: Any) -> bool:
    match content:
        case Template():
            return True
        case list():
            return any(map(_holds_template, content))
        case dict():
            return any(map(_holds_template, content.values()))
    return False


def _marked(text: str) -> bool:
    """Whether it is a template at all; what is none, such as a picture of megabytes, is sent as it stands."""
    return any(mark in text for mark in ("{{", "{%", "{#"))


def _fields(row: Mapping[str, Any]) -> str:
    return _cut(", ".join(map(str, row)) or "none")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
