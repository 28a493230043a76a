"""Texts become one file of tokens per node, bytes or a tokenizer's, made by the first process that wants it."""

import ast
import logging
import sysconfig
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import assert_never

from galvatron_planner.errors import GalvatronError
from galvatron_planner.training import DataSource, ImageFolder, PythonDocs, SyntheticData, TextFiles, TokenFiles
from galvatron_runtime.data.node_files import node_file
from galvatron_runtime.documents import Piece, all_pieces, text_files
from galvatron_runtime.tokenizing import end_id_of, open_tokenizer, write_tokens

log = logging.getLogger(__name__)

BYTE_VOCABULARY = 256
TOLD_SECONDS = 15.0
"""Between two words about texts that are being cut."""
_TEXT_SUFFIXES = {".txt", ".md"}
_NOT_DOCUMENTATION = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "pydoc_data",
    "site-packages",
    "dist-packages",
}
"""Folders of the standard library whose docstrings explain nothing to users of Python."""


class UnusableData(GalvatronError):
    """A data source from which no sample can be drawn."""


def cut_file(source: TextFiles, tokenizer: str, directory: Path, *, vocabulary_size: int) -> Path:
    """Find the file of a tokenizer's ids, or make it: a ``*.npy``.

    Args:
        source: the texts.
        tokenizer: where it lies.
        directory: of this node.
        vocabulary_size: tokens that the model knows.

    Raises:
        GalvatronError: when there are no texts, or the tokenizer cannot be used; naming the file.
    """
    cutter = open_tokenizer(Path(tokenizer))
    if cutter.get_vocab_size() > vocabulary_size:
        raise UnusableData(
            f"{tokenizer} has {cutter.get_vocab_size()} tokens, the model knows {vocabulary_size}",
            remedy="set spec.model.vocabularySize to at least as many",
        )
    files, end_id = text_files([Path(source.path)]), end_id_of(cutter, source.end_token)

    def make(path: Path) -> None:
        written = write_tokens(_told(files, source), cutter, path, end_id=end_id)
        log.info("texts cut", extra={"num_tokens": written.num_tokens, "num_documents": written.num_documents})

    key = f"{source.model_dump_json()} {cutter.to_str()}"
    return node_file(directory, ".npy", key=key, files=files, make=make)


def _told(files: Sequence[Path], source: TextFiles) -> Iterator[Piece]:
    """Read documents, and say now and then how far it is."""
    told = time.monotonic()
    for piece, share in all_pieces(files, field=source.field):
        if time.monotonic() - told >= TOLD_SECONDS:
            told = time.monotonic()
            log.info("cutting texts into tokens", extra={"source": describe(source), "percent": round(100 * share)})
        yield piece


def token_file(source: PythonDocs | TextFiles, directory: Path) -> Path:
    """Find the token file of a source, or make it."""
    files = _python_sources() if isinstance(source, PythonDocs) else _text_files(Path(source.path))

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.writelines(_documentation(files) if isinstance(source, PythonDocs) else _contents(files))
        log.info("token file written", extra={"source": describe(source), "num_tokens": path.stat().st_size})

    return node_file(directory, ".tokens", key=source.model_dump_json(), files=files, make=make)


def describe(source: DataSource) -> str:
    """Name a source in a message."""
    match source:
        case TextFiles():
            return f"text {source.path!r}"
        case TokenFiles():
            return f"{source.path!r}"
        case ImageFolder():
            return f"the folder of images {source.path!r}"
        case PythonDocs():
            return "the documentation of Python's standard library"
        case SyntheticData():
            return "synthetic data"
        case _:
            assert_never(source)


def _text_files(path: Path) -> tuple[Path, ...]:
    """List the files of a :class:`TextFiles` source in the order in which they are read."""
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise UnusableData(
            f"{path} is neither a file nor a directory",
            remedy="mount the data under this path on every node, or correct the path",
        )
    files = tuple(sorted(file for file in path.iterdir() if file.suffix in _TEXT_SUFFIXES and file.is_file()))
    if not files:
        raise UnusableData(
            f"{path} has no *.txt or *.md files", remedy="put texts directly into it, or name another directory"
        )
    return files


def _contents(files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        try:
            yield path.read_bytes()
        except OSError as error:
            raise UnusableData(f"cannot read {path}: {error.strerror}", remedy="make it readable") from error


def _python_sources() -> tuple[Path, ...]:
    """List the modules of the standard library, the language reference (``pydoc_data.topics``) first."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = (p for p in library.rglob("*.py") if not _NOT_DOCUMENTATION & set(p.relative_to(library).parts))
    topics = library / "pydoc_data" / "topics.py"
    files = tuple(sorted(modules, key=lambda path: path.relative_to(library).as_posix()))
    if not files or not topics.is_file():
        raise UnusableData(
            f"{library} lacks the sources of the standard library", remedy="install them, or train on other data"
        )
    return (topics, *files)


def _documentation(files: Sequence[Path]) -> Iterator[bytes]:
    """Read what :func:`_python_sources` lists, from the syntax tree: importing would run it."""
    topics, *modules = files
    yield from _topics(_parse(topics))
    for path in modules:
        name = path.stem if path.stem != "__init__" else path.parent.name
        yield from _docstrings(_parse(path), name)


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old docstrings are not ours to report
        return ast.parse(path.read_bytes())


def _topics(tree: ast.Module) -> Iterator[bytes]:
    """Yield the texts of ``topics = {name: text, ...}`` in their order in the file."""
    tables = (node.value for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign))
    for table in tables:
        texts = table.values if isinstance(table, ast.Dict) else []
        for text in texts:
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.value.encode(errors="replace") + b"\n\n"


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[bytes]:
    """Yield the docstrings of a module, its classes and functions, each under its qualified name."""
    text = ast.get_docstring(node)
    if text:
        yield f"{name}\n\n{text}\n\n".encode(errors="replace")
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
