"""Document 4: everything about a training run that is not the plan.

Nothing in it may change with the plan: the same specification under any plan gives the same losses.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from galvatron_planner.documents import Document, Value


class AdamW(Value):
    """Decoupled weight decay (Loshchilov and Hutter 2019) with linear warm-up and a constant rate after it."""

    name: Literal["AdamW"] = "AdamW"
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.1
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: PositiveFloat = 1e-8
    warmup_steps: NonNegativeInt = 0


class SyntheticData(Value):
    """Random tokens, drawn from the seed; for throughput, not for learning."""

    source: Literal["synthetic"] = "synthetic"


class PythonDocs(Value):
    """The documentation that comes with Python's standard library, as bytes: real text on every machine."""

    source: Literal["python_docs"] = "python_docs"


class TextFiles(Value):
    """Files of text, as bytes or cut into tokens.

    Attributes:
        path: a file, or a directory whose ``*.txt`` and ``*.md`` files are read in the order of their names; with a
            tokenizer ``*.jsonl`` and ``*.parquet`` as well, also of directories within it.
        tokenizer: a ``tokenizer.json`` of Hugging Face, or a directory that holds one; absent for bytes.
        field: where JSON lines and Parquet rows hold their text.
        end_token: behind every document; empty for none, absent for the tokenizer's own.
    """

    source: Literal["text"] = "text"
    path: str
    tokenizer: str | None = None
    field: str = "text"
    end_token: str | None = None


class TokenFiles(Value):
    """Files of token ids.

    Attributes:
        path: a file, or a directory whose ``*.npy`` and ``*.bin`` files are read in the order of their names.
        bin_type: of the numbers in ``*.bin`` files, which are bare and little-endian.
    """

    source: Literal["tokens"] = "tokens"
    path: str
    bin_type: Literal["uint16", "uint32"] = "uint16"


class ImageFolder(Value):
    """Images in folders, one for each class.

    Attributes:
        path: the directory of the folders; classes are counted in the order of their names.
    """

    source: Literal["images"] = "images"
    path: str


DataSource = Annotated[SyntheticData | PythonDocs | TextFiles | TokenFiles | ImageFolder, Field(discriminator="source")]


class TrainingCheckpoints(Value):
    """Saved weights and optimizer state.

    Attributes:
        directory: where they are kept; every rank must see the same one.
        period_steps: steps between two of them.
        keep_last: how many are kept.
        resume: whether to go on from the newest one, whoever saved it.
        owner: the job; without ``resume`` its attempts go on from what earlier ones of the same owner saved, and from
            nothing else. Empty where a job has one attempt.
        in_background: whether training goes on while one is written, from a copy in host memory.
    """

    directory: str
    period_steps: PositiveInt
    keep_last: PositiveInt = 2
    resume: bool = True
    owner: str = ""
    in_background: bool = False


class TrainingSpec(Document):
    """Document 4.

    Attributes:
        steps: optimizer steps in total.
        optimizer: how weights change.
        gradient_clip_norm: global gradient norm above which gradients are scaled down; 0 for never.
        seed: of initial weights and data order.
        data: where samples come from.
        initial_weights: a directory with published weights to start from, as ``save_pretrained`` of transformers writes
            it; absent when they are drawn.
        checkpoints: absent for a run that cannot be resumed.
        progress_deadline_seconds: how long nothing may move before a run is given up.
    """

    schema_tag: Literal["galvatron/training/v1"] = Field(default="galvatron/training/v1", alias="schema")
    steps: PositiveInt
    optimizer: AdamW
    gradient_clip_norm: NonNegativeFloat
    seed: NonNegativeInt
    data: DataSource
    initial_weights: str | None = None
    checkpoints: TrainingCheckpoints | None = None
    progress_deadline_seconds: PositiveInt = 900
