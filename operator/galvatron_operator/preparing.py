"""``galvatron prepare``: texts become one file of token ids, as ``spec.training.dataset`` reads them.

Tokenizers are those of Hugging Face. Ids are written as they come; what is unfinished has another name, and goes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from galvatron_operator.texts import PIECE_BYTES, Piece, pieces, text_files
from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_planner.units import format_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""What common tokenizers put behind a document: GPT-2 and Qwen, Llama 3, LLaMA and T5, Gemma, BERT."""
_LEAST_SHARE = 0.002
"""Of the files, at which the bar moves."""

console = Console()


class UnusableTokenizer(GalvatronError):
    """A tokenizer that is not there, or lacks what was asked for."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of the texts."""

    num_documents: int
    num_tokens: int


def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(help="*.txt, *.md, *.jsonl and *.parquet files, or directories.", metavar="SOURCE..."),
    ],
    *,
    tokenizer: Annotated[Path, typer.Option(help="A tokenizer.json, or the directory of a model that holds one.")],
    output: Annotated[Path, typer.Option(help="The *.npy file to write.")],
    field: Annotated[str, typer.Option(help="Where JSON lines and Parquet rows hold their text.")] = "text",
    end_token: Annotated[
        str | None, typer.Option(help="Behind every document; empty for none. Default: the tokenizer's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Turn texts into a file of token ids to train on."""
    if output.suffix != ".npy":
        raise InvalidInput(f"--output {output} is no *.npy file", remedy=f"write {output.with_suffix('.npy')}")
    if output.exists() and not force:
        raise InvalidInput(f"{output} exists", remedy="name another file, or add --force")
    files = text_files(sources)
    cutter = open_tokenizer(tokenizer)
    end = _end_id(cutter, end_token)
    vocabulary_size = cutter.get_vocab_size()
    try:
        prepared = write_tokens(_with_progress(files, field), cutter, output, end_id=end)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; nothing was written")
        raise typer.Exit(130) from None
    console.print(
        f"{output}: {prepared.num_tokens:,} tokens of {prepared.num_documents:,} documents,"
        f" {format_bytes(output.stat().st_size)}\n"
        f"  spec.model.vocabularySize: {vocabulary_size} or more\n"
        f"  spec.training.dataset: {{source: Tokens, path: {output}}}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def open_tokenizer(path: Path) -> "Tokenizer":
    """Read a tokenizer.

    Raises:
        UnusableTokenizer: when it cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UnusableTokenizer(
            "the package tokenizers is missing", remedy="pip install 'galvatron-operator[data]'"
        ) from error
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UnusableTokenizer(f"there is no {file}", remedy="name a tokenizer.json, or a model's directory with one")
    try:
        found: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no class of its own
        raise UnusableTokenizer(f"cannot read {file}: {error}", remedy="download it anew") from error
    found.no_truncation()
    found.no_padding()
    return found


def write_tokens(texts: Iterable[Piece], cutter: "Tokenizer", output: Path, *, end_id: int | None) -> Prepared:
    """Cut texts into tokens and write their ids, the smallest unsigned integers that hold the vocabulary.

    Args:
        texts: the documents, piece by piece.
        cutter: the tokenizer.
        output: the file that is complete when it has this name.
        end_id: written behind every document.

    Raises:
        InvalidInput: when there is no token, or no room to write.
    """
    dtype = np.dtype("<u2" if cutter.get_vocab_size() <= 1 << 16 else "<u4")
    partial = output.with_name(f".{output.name}.partial")
    num_documents = num_tokens = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            _write_header(file, dtype, 0)
            for batch in _batches(texts):
                cut = cutter.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
                for piece, encoding in zip(batch, cut, strict=True):
                    ids = encoding.ids + ([end_id] if piece.ends and end_id is not None else [])
                    file.write(np.asarray(ids, dtype=dtype).tobytes())
                    num_documents, num_tokens = num_documents + piece.ends, num_tokens + len(ids)
            # The header leaves room for a longer count.
            file.seek(0)
            _write_header(file, dtype, num_tokens)
        if not num_tokens:
            raise InvalidInput("the texts hold no token", remedy="name files with texts in them")
        partial.replace(output)
    except OSError as error:
        raise InvalidInput(f"cannot write {output}: {error.strerror or error}", remedy="make room for it") from error
    finally:
        partial.unlink(missing_ok=True)
    return Prepared(num_documents, num_tokens)


def _write_header(file: BinaryIO, dtype: np.dtype[Any], num_tokens: int) -> None:
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_tokens,)}
    )


def _batches(texts: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Put pieces together that are enough for all cores."""
    batch: list[Piece] = []
    size = 0
    for piece in texts:
        batch.append(piece)
        size += len(piece.text) + 64
        if size >= 4 * PIECE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _with_progress(files: tuple[Path, ...], field: str) -> Iterator[Piece]:
    """Read all files, and show how far it is by their sizes."""
    sizes = [path.stat().st_size for path in files]
    total = max(sum(sizes), 1)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    before, shown = 0, 0.0
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task("reading", total=1.0)
        for path, size in zip(files, sizes, strict=True):
            bars.update(task, description=path.name)
            for piece in pieces(path, field=field):
                share = (before + piece.share * size) / total
                if share - shown >= _LEAST_SHARE:
                    bars.update(task, completed=share)
                    shown = share
                yield piece
            before += size
        bars.update(task, completed=1.0)


def _end_id(cutter: "Tokenizer", wanted: str | None) -> int | None:
    if wanted == "":
        return None
    for token in END_TOKENS if wanted is None else (wanted,):
        found: int | None = cutter.token_to_id(token)
        if found is not None:
            return found
    names = " or ".join(END_TOKENS) if wanted is None else repr(wanted)
    raise UnusableTokenizer(
        f"the tokenizer has no token {names} to put behind documents",
        remedy="name one of its tokens with --end-token, or none with --end-token ''",
    )
