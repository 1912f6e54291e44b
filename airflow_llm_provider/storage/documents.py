"""Files that are a row each: texts, and PDFs by the text that is in them.

A row has ``path`` (the file's URI), ``name`` and ``text``. One whose text can't be read becomes a dead letter.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any

from airflow_llm_provider.exceptions import ConfigurationError, SourceError
from airflow_llm_provider.storage.file_source import FileSource
from airflow_llm_provider.storage.source import MalformedRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_llm_provider.storage.file_source import Raw, Record
    from airflow_llm_provider.storage.found_files import File

MOST_BYTES = 64 << 20

_FIELDS = ("path", "name", "text")


class DocumentSource(FileSource):
    """Documents; each is one record."""

    kind = "documents"
    counts_bytes = True

    def _records(
        self,
        stream: IO[bytes],
        file: File,
        start: tuple[int, int],  # noqa: ARG002 - there is one record
        see: Callable[[bytes], object],
    ) -> Iterator[Record]:
        self.selection.of(_FIELDS, file)
        data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise SourceError(f"{file.uri} is larger than {MOST_BYTES >> 20} MiB, which no row may be")
        see(data)
        yield 0, 1, _row(file, data)


def _row(file: File, data: bytes) -> Raw:
    name = file.uri.rsplit("/", 1)[-1]
    if file.ending == "pdf":
        text: str | MalformedRow = _pdf_text(file, data)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            shown = data[:10_000].decode("utf-8", "replace")
            return MalformedRow(f"it is no UTF-8: {error.reason} at byte {error.start}", shown)
    if isinstance(text, MalformedRow):
        return text
    return {"path": file.uri, "name": name, "text": text}


def _pdf_text(file: File, data: bytes) -> str | MalformedRow:
    """The text of all pages, a blank line between two."""
    try:
        import pypdf  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            f"source: {file.uri} needs pypdf. Install airflow-llm-provider[files] on the workers"
        ) from error
    try:
        pages: Any = pypdf.PdfReader(io.BytesIO(data)).pages
        return "\n\n".join(page.extract_text() for page in pages)
    except Exception as error:  # noqa: BLE001 - of a damaged or locked file anything may be raised
        return MalformedRow(f"its text can't be read: {type(error).__name__}: {error}", "")
