"""Documents out of files, in pieces that fit memory: plain text, JSON lines, Parquet."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from galvatron_planner.errors import GalvatronError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
PIECE_BYTES = 1 << 20
"""About as much of a text is cut into tokens at once; pieces end with a line."""
_ROWS = 1000


class UnreadableText(GalvatronError):
    """A file without usable texts."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document.

    Attributes:
        text: its characters.
        ends: whether the document ends with it.
        share: how much of its file is read with it, from 0 to 1.
    """

    text: str
    ends: bool
    share: float


def text_files(sources: Sequence[Path]) -> tuple[Path, ...]:
    """List the files that are meant: files themselves, and those with a known suffix in directories.

    Raises:
        UnreadableText: when there is none, or a kind that is not read.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            found += sorted(path for path in source.rglob("*") if _is_text(path, source))
        elif not source.is_file():
            raise UnreadableText(f"{source} is neither a file nor a directory", remedy="correct the path")
        elif source.suffix not in SUFFIXES:
            raise UnreadableText(f"{source} is none of {', '.join(SUFFIXES)}", remedy="convert or rename it")
        else:
            found.append(source)
    if not found:
        raise UnreadableText(
            f"{', '.join(map(str, sources))}: no {', '.join(SUFFIXES)} files", remedy="name a directory that holds some"
        )
    return tuple(found)


def _is_text(path: Path, source: Path) -> bool:
    # A mounted ConfigMap holds its files a second time in a hidden directory.
    is_hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
    return path.suffix in SUFFIXES and path.is_file() and not is_hidden


def pieces(path: Path, *, field: str) -> Iterator[Piece]:
    """Read the documents of a file: the file itself, its lines, or its rows.

    Args:
        path: the file.
        field: where a line or row holds its text.

    Raises:
        UnreadableText: naming file and line.
    """
    try:
        match path.suffix:
            case ".jsonl":
                yield from _json_lines(path, field)
            case ".parquet":
                yield from _rows(path, field)
            case _:
                yield from _text(path)
    except UnicodeDecodeError as error:
        raise UnreadableText(
            f"{path} is not UTF-8: {error.reason}", remedy="convert it, for instance with iconv"
        ) from error
    except OSError as error:
        raise UnreadableText(f"cannot read {path}: {error.strerror or error}", remedy="make it readable") from error


def all_pieces(files: Sequence[Path], *, field: str) -> Iterator[tuple[Piece, float]]:
    """Read the documents of files one after another, and tell with each piece which share of all is read, 0 to 1."""
    sizes = [path.stat().st_size for path in files]
    total, before = max(sum(sizes), 1), 0
    for path, size in zip(files, sizes, strict=True):
        for piece in pieces(path, field=field):
            yield piece, (before + piece.share * size) / total
        before += size


def _text(path: Path) -> Iterator[Piece]:
    size, done = max(path.stat().st_size, 1), 0
    with path.open("rb") as file:
        # Lines and not characters are read: a piece ends where a tokenizer would hardly join.
        chunks = iter(lambda: b"".join(file.readlines(PIECE_BYTES)), b"")
        for chunk, following in pairwise(_with_end(chunks)):
            done += len(chunk or b"")
            yield Piece((chunk or b"").decode(), ends=following is None, share=done / size)


def _with_end(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    yield from chunks
    yield None


def _json_lines(path: Path, field: str) -> Iterator[Piece]:
    size, done = max(path.stat().st_size, 1), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            done += len(line)
            text = _text_of_line(line, field, place=f"{path}, line {number}") if line.strip() else ""
            if text:
                yield Piece(text, ends=True, share=done / size)


def _text_of_line(line: bytes, field: str, *, place: str) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UnreadableText(f"{place}: no JSON: {error}", remedy="correct the line, or leave the file out") from error
    text = row.get(field) if isinstance(row, dict) else None
    if isinstance(text, str):
        return text
    known = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
    raise UnreadableText(f"{place}: no text in field {field!r}, there is {known}", remedy="name the field with --field")


def _rows(path: Path, field: str) -> Iterator[Piece]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UnreadableText(
            f"{path}: Parquet needs pyarrow", remedy="pip install 'galvatron-operator[data]'"
        ) from error
    try:
        file, done = parquet.ParquetFile(path), 0
        if field not in file.schema_arrow.names:
            raise UnreadableText(
                f"{path}: no column {field!r}, there is {', '.join(file.schema_arrow.names)}",
                remedy="name the column with --field",
            )
        for batch in file.iter_batches(batch_size=_ROWS, columns=[field]):
            for text in batch.column(0).to_pylist():
                done += 1
                if _checked(text, path, done):
                    yield Piece(text, ends=True, share=done / file.metadata.num_rows)
    except ArrowException as error:
        raise UnreadableText(f"cannot read {path}: {error}", remedy="make the file anew") from error


def _checked(text: object, path: Path, row: int) -> bool:
    """Tell whether a row has a text; null stands for none."""
    if text is None or isinstance(text, str):
        return bool(text)
    raise UnreadableText(
        f"{path}, row {row}: {type(text).__name__} instead of a text", remedy="name a column of texts with --field"
    )
