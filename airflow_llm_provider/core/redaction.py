"""What is taken out of texts before anybody keeps them: the DAG's own hook, over dead letters and errors.

Owns when the hook is called, and what stands where it fails. Does not know what is personal (the hook does), nor
results: those are what the run is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_llm_provider.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

UNREDACTED = "[left out: redact failed]"
"""What is kept of a text that the hook did not take: nothing of it, and nothing that the hook said of it."""


class Redaction:
    """A hook, called with each text.

    Args:
        hook: text to text; None keeps every text as it is.

    Raises:
        ConfigurationError: the hook can't be called.
    """

    def __init__(self, hook: Callable[[str], str] | None = None) -> None:
        if hook is not None and not callable(hook):
            raise ConfigurationError(f"redact must be a function from text to text, not {hook!r}")
        self._hook = hook

    @property
    def name(self) -> str | None:
        """The hook's, without what it was made with, which may be a key; None: there is none."""
        if self._hook is None:
            return None
        return getattr(self._hook, "__qualname__", None) or type(self._hook).__name__

    def text(self, text: str) -> str:
        """What may be kept of a text; never raises."""
        if self._hook is None:
            return text
        try:
            kept: Any = self._hook(text)
            if not isinstance(kept, str):
                return UNREDACTED
            str.encode(kept)  # half a surrogate pair could not be written
        except (Exception, SystemExit, GeneratorExit):  # noqa: BLE001 - the hook is the DAG's, and its words may quote it
            return UNREDACTED
        return str(kept)

    def value(self, value: Any) -> Any:
        """What may be kept of a JSON value that was read or can be written, and so is no 255 levels deep.

        Each text in it goes through the hook; names of fields, numbers and truths stay.
        """
        if self._hook is None:
            return value
        match value:
            case str():
                return self.text(value)
            case dict():
                return {name: self.value(each) for name, each in value.items()}
            case list():
                return [self.value(each) for each in value]
        return value


KEEP = Redaction()
"""Keeps every text as it is."""
