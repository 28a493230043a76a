"""Files of tokens: opened in place, and looked through once per node for what the model does not know."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from galvatron_planner.model import Model
from galvatron_planner.training import TokenFiles
from galvatron_runtime.data.node_files import node_file
from galvatron_runtime.data.sources import TokenArray
from galvatron_runtime.data.texts import UnusableData

log = logging.getLogger(__name__)

_SUFFIXES = {".npy", ".bin"}
_CHUNK_TOKENS = 1 << 24


def token_files(source: TokenFiles) -> tuple[Path, ...]:
    """List the files of a source in the order in which they are read.

    Raises:
        UnusableData: when there is none.
    """
    path = Path(source.path)
    if path.is_file() and path.suffix in _SUFFIXES:
        return (path,)
    if not path.is_dir():
        problem = f"{path} is neither a *.npy or *.bin file nor a directory"
        raise UnusableData(problem, remedy="correct the path; a text is read with source Text")
    files = tuple(sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file()))
    if not files:
        raise UnusableData(
            f"{path} has no *.npy or *.bin files", remedy="put token files directly into it, or correct the path"
        )
    return files


def map_tokens(path: Path, source: TokenFiles) -> TokenArray:
    """Map the tokens of a file, [T].

    Raises:
        UnusableData: when it holds no tokens.
    """
    try:
        if path.suffix == ".npy":
            tokens: TokenArray = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            tokens = map_bare(path, np.dtype(source.bin_type).newbyteorder("<"))
    except (OSError, ValueError, EOFError) as error:
        raise UnusableData(f"cannot read tokens from {path}: {error}", remedy="make the file anew") from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UnusableData(
            f"{path} holds {tokens.dtype} of shape {list(tokens.shape)}, not a row of token ids",
            remedy="save a one-dimensional array of integers",
        )
    return tokens


def map_bare(path: Path, dtype: np.dtype[np.unsignedinteger]) -> TokenArray:
    """Map a file that holds nothing but numbers, [T]."""
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise ValueError(f"{size} bytes are no whole number of {dtype.name}")
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype=dtype)


def check_tokens(source: TokenFiles, files: Sequence[Path], model: Model, directory: Path) -> None:
    """Look for ids that the model does not know; what was found is kept in the node's directory.

    Raises:
        UnusableData: naming file and position of the first one.
    """

    def check(seen: Path) -> None:
        count = sum(_check_file(path, map_tokens(path, source), model.vocabulary_size) for path in files)
        seen.touch()
        log.info("token files checked", extra={"source": source.path, "num_files": len(files), "num_tokens": count})

    key = f"{source.model_dump_json()} {model.vocabulary_size}"
    node_file(directory, ".checked", key=key, files=files, make=check)


def _check_file(path: Path, tokens: TokenArray, vocabulary_size: int) -> int:
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        chunk = tokens[start : start + _CHUNK_TOKENS]
        unknown = (chunk < 0) | (chunk >= vocabulary_size)
        if unknown.any():
            place = int(unknown.argmax())
            raise UnusableData(
                f"{path} has token {chunk[place]} at position {start + place},"
                f" the model knows 0 to {vocabulary_size - 1}",
                remedy="raise spec.model.vocabularySize, or prepare the data with the model's own tokenizer"
                + (", or correct spec.training.dataset.binType" if path.suffix == ".bin" else ""),
            )
    return len(tokens)
