"""``galvatron convert``: its commands and their options; ``foreign.py`` does it, and is imported when one is called."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Exchange plans and measurements with Hetu-Galvatron.")

ModelOption = Annotated[str, typer.Option("--model", help="A model by name, or a Hugging Face config.json.")]
LengthOption = Annotated[int | None, typer.Option(help="Tokens per sample; without it the model's.", min=1)]
ClusterOption = Annotated[str, typer.Option("--cluster", help="Devices, for instance 2x8xa100-40gb.")]
PrecisionOption = Annotated[str, typer.Option(help="Number format of the computation: FP64, FP32 or BF16.")]
OutputOption = Annotated[Path, typer.Option("--output", help="The file to write.")]


@app.command()
def plan(  # noqa: PLR0913 -- the options of a command
    file: Annotated[Path, typer.Argument(help="plan.json of ours, or a galvatron_config_*.json.")],
    *,
    output: OutputOption,
    model: ModelOption = "",
    cluster: ClusterOption = "",
    sequence_length: LengthOption = None,
    precision: PrecisionOption = "BF16",
    profile: Annotated[
        Path | None, typer.Option(help="Prices an imported plan; without it the device catalogue does.")
    ] = None,
) -> None:
    """Write a plan of ours as a galvatron_config, or one of theirs as plan.json (with --model and --cluster)."""
    from galvatron_operator.foreign import convert_plan
    from galvatron_planner.model import Precision

    convert_plan(
        file,
        output=output,
        model=model,
        cluster=cluster,
        sequence_length=sequence_length,
        precision=Precision.named(precision),
        profile=profile,
    )


@app.command()
def profile(  # noqa: PLR0913 -- the options of a command
    folders: Annotated[list[Path], typer.Argument(help="Folders with their profiling files.")],
    *,
    output: OutputOption,
    model: ModelOption,
    cluster: ClusterOption,
    sequence_length: LengthOption = None,
    precision: PrecisionOption = "BF16",
    batch: Annotated[int, typer.Option(help="Largest global batch size that will be searched.", min=1)] = 1024,
    max_tensor_degree: Annotated[int, typer.Option(help="Largest degree that they measured.", min=1)] = 8,
) -> None:
    """Write their profiling files as a profile.json of ours."""
    from galvatron_operator.foreign import convert_profile
    from galvatron_planner.model import Precision

    convert_profile(
        folders,
        output=output,
        model=model,
        cluster=cluster,
        sequence_length=sequence_length,
        precision=Precision.named(precision),
        batch=batch,
        max_tensor_degree=max_tensor_degree,
    )
