"""Documents cut into tokens of a Hugging Face tokenizer, written as one file of ids that training maps.

Ids are written as they come; what is unfinished has another name, and goes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_runtime.documents import PIECE_BYTES, Piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""What common tokenizers put behind a document: GPT-2 and Qwen, Llama 3, LLaMA and T5, Gemma, BERT."""


class UnusableTokenizer(GalvatronError):
    """A tokenizer that is not there, or lacks what was asked for."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of the texts."""

    num_documents: int
    num_tokens: int


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


def end_id_of(cutter: "Tokenizer", wanted: str | None) -> int | None:
    """Find the token that goes behind documents.

    Args:
        cutter: the tokenizer.
        wanted: its name; empty for none, absent for the tokenizer's own.

    Raises:
        UnusableTokenizer: when there is no such token.
    """
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
