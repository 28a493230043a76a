"""``galvatron prepare``: texts become one file of token ids, as ``spec.training.dataset`` reads them.

    python -m galvatron_runtime.prepare SOURCE... --tokenizer tokenizer.json --output tokens.npy

Needs no torch.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_planner.units import format_bytes
from galvatron_runtime.documents import Piece, all_pieces, text_files
from galvatron_runtime.tokenizing import end_id_of, open_tokenizer, write_tokens

_LEAST_SHARE = 0.002
"""Of the files, at which the bar moves."""

app = typer.Typer(add_completion=False)
console = Console()


@app.command()
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
    end = end_id_of(cutter, end_token)
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


def _with_progress(files: tuple[Path, ...], field: str) -> Iterator[Piece]:
    """Read all files, and show how far it is by their sizes."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    shown = 0.0
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task("cutting", total=1.0)
        for piece, share in all_pieces(files, field=field):
            if share - shown >= _LEAST_SHARE:
                bars.update(task, completed=share)
                shown = share
            yield piece
        bars.update(task, completed=1.0)


def main() -> None:
    """Run the command; errors of ours are told without a traceback."""
    try:
        app(prog_name="galvatron prepare")
    except GalvatronError as error:
        sys.stderr.write(f"error: {error.problem}\nwhat to do: {error.remedy}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
