"""``spec`` of a GalvatronJob, field by field; the manual is ``crds/galvatronjobs.yaml`` (``kubectl explain gvj.spec``).

Types, bounds and defaults stand here and in the CRD, and a test holds the two equal, because the same YAML also runs
without a cluster. Rules over several fields are in ``checks.py``; fields whose default depends on others are ``None``
here and get their value where a job is converted to the planner's types (``job.py``).
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from galvatron_operator.api.overlay import PodOverlay
from galvatron_operator.api.own import OwnFields
from galvatron_operator.api.placing import GangScheduling, Network, Topology
from galvatron_operator.api.policy import Elasticity, FailurePolicy, Lifecycle
from galvatron_operator.api.values import (
    BatchSize,
    CatalogueName,
    ConfigMapKey,
    DataPath,
    DirectoryPath,
    LabelText,
    ManagerName,
    MemoryQuantity,
    ObjectName,
    PositiveDecimal,
    Quantity,
    Seconds,
    SpecValue,
)
from galvatron_planner.model import Family
from galvatron_planner.presets import PRESETS
from galvatron_planner.problem import Algorithm, SearchDimension

CPU_RESOURCE = "cpu"
"""``spec.budget.resourceName`` of a job whose devices are CPU processes."""

CONTROLLER = "galvatron.io/controller"
"""``spec.managedBy`` of the jobs that this operator works on."""


class Execution(StrEnum):
    """What a job does."""

    TRAIN = "Train"
    PLAN = "Plan"
    """Profile and search, then complete without training."""


class ModelFields(SpecValue):
    """``spec.model``: a preset, a family's shape, or layers of one's own; what each needs is in ``checks.py``."""

    preset: Annotated[str, Field(max_length=63, json_schema_extra={"enum": [*PRESETS]})] | None = None
    family: Family | None = None
    own: OwnFields | None = None
    hidden_size: int | None = Field(default=None, ge=1, le=262_144)
    num_layers: int | None = Field(default=None, ge=1, le=1024)
    num_attention_heads: int | None = Field(default=None, ge=1, le=1024)
    num_key_value_heads: int | None = Field(default=None, ge=1, le=1024)
    head_size: int | None = Field(default=None, ge=1, le=65_536)
    feed_forward_size: int | None = Field(default=None, ge=1, le=1_048_576)
    vocabulary_size: int | None = Field(default=None, ge=2, le=2_097_152)
    sequence_length: int | None = Field(default=None, ge=1, le=1_048_576)
    rotary_base: int | None = Field(default=None, ge=1, le=2_000_000_000)
    tie_word_embeddings: bool | None = None
    num_decoder_layers: int | None = Field(default=None, ge=1, le=1024)
    decoder_sequence_length: int | None = Field(default=None, ge=1, le=1_048_576)
    image_size: int | None = Field(default=None, ge=1, le=65_536)
    patch_size: int | None = Field(default=None, ge=1, le=65_536)
    depths: tuple[Annotated[int, Field(ge=1, le=1024)], ...] | None = Field(default=None, min_length=1, max_length=8)
    window_size: int | None = Field(default=None, ge=1, le=65_536)


class Budget(SpecValue):
    """``spec.budget``: the devices of the job and what may lie on each of them."""

    gpus: int = Field(ge=1, le=4096)
    min_gpus: int | None = Field(default=None, ge=1, le=4096, alias="minGPUs")
    gpus_per_node: int = Field(ge=1, le=128)
    resource_name: str = Field(default="nvidia.com/gpu", min_length=1, max_length=253)
    memory_per_gpu: MemoryQuantity = Field(alias="memoryPerGPU")
    memory_reserve_percent: int = Field(default=0, ge=0, le=90)
    cost_per_gpu_hour: PositiveDecimal | None = Field(default=None, alias="costPerGPUHour")

    @property
    def num_nodes(self) -> int:
        """Pods of the job."""
        return self.gpus // self.gpus_per_node

    @property
    def min_nodes(self) -> int:
        """Pods with which the job still trains."""
        return (self.min_gpus or self.gpus) // self.gpus_per_node

    @property
    def uses_cpu(self) -> bool:
        """Whether devices are CPU processes instead of GPUs."""
        return self.resource_name == CPU_RESOURCE


class GlobalBatchSize(SpecValue):
    """``spec.training.globalBatchSize``: one ``value``, or a range to search."""

    value: BatchSize | None = None
    min: BatchSize | None = None
    max: BatchSize | None = None
    step: BatchSize | None = None


class PrecisionName(StrEnum):
    """``spec.training.precision``; FP64 is for the runtime's own tests."""

    FP32 = "FP32"
    BF16 = "BF16"


class Optimizer(SpecValue):
    """``spec.training.optimizer``."""

    name: Literal["AdamW"] = "AdamW"
    learning_rate: PositiveDecimal = "3e-4"
    weight_decay: PositiveDecimal = "0.1"
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000_000)


class DatasetSource(StrEnum):
    """Where samples come from."""

    SYNTHETIC = "Synthetic"
    PYTHON_DOCS = "PythonDocs"
    TEXT = "Text"
    TOKENS = "Tokens"
    IMAGES = "Images"

    @property
    def is_files(self) -> bool:
        """Whether it has a path, and in a cluster a volume."""
        return self in {DatasetSource.TEXT, DatasetSource.TOKENS, DatasetSource.IMAGES}


class BinType(StrEnum):
    """Numbers in ``*.bin`` files."""

    UINT16 = "UInt16"
    UINT32 = "UInt32"


class DataVolume(SpecValue):
    """``spec.training.dataset.volume``: exactly one of the two, mounted read-only."""

    claim_name: ObjectName | None = None
    config_map_name: ObjectName | None = None


class DatasetTokenizer(SpecValue):
    """``spec.training.dataset.tokenizer``: how texts are cut into tokens; without it they are read as bytes."""

    path: DataPath
    field: str = Field(default="text", min_length=1, max_length=255)
    end_token: str | None = Field(default=None, max_length=255)


class Dataset(SpecValue):
    """``spec.training.dataset``."""

    source: DatasetSource = DatasetSource.SYNTHETIC
    path: DataPath | None = None
    bin_type: BinType | None = None
    tokenizer: DatasetTokenizer | None = None
    volume: DataVolume | None = None


class ClaimVolume(SpecValue):
    """A PersistentVolumeClaim: ``spec.checkpoint.volume``, ``spec.training.initialWeights.volume``."""

    claim_name: ObjectName


class InitialWeights(SpecValue):
    """``spec.training.initialWeights``; the volume is needed in a cluster only."""

    path: DataPath
    volume: ClaimVolume | None = None


class Training(SpecValue):
    """``spec.training``."""

    global_batch_size: GlobalBatchSize
    steps: int = Field(ge=1, le=1_000_000_000)
    precision: PrecisionName = PrecisionName.BF16
    seed: int = Field(default=42, ge=0, le=2_147_483_647)
    gradient_clip_norm: PositiveDecimal = "1.0"
    optimizer: Optimizer = Optimizer()
    dataset: Dataset = Dataset()
    initial_weights: InitialWeights | None = None


class PipelineSchedule(StrEnum):
    """Order of forward and backward passes in a pipeline."""

    ONE_F_ONE_B = "OneFOneB"
    GPIPE = "GPipe"


class MaxDegrees(SpecValue):
    """``spec.search.maxDegrees``; what is absent is unbounded."""

    pipeline: int | None = Field(default=None, ge=1, le=1024)
    tensor: int | None = Field(default=None, ge=1, le=1024)


class FixedPlanRef(SpecValue):
    """``spec.search.fixedPlanRef``: where in the job's namespace the plan of algorithm ``Fixed`` is."""

    name: ObjectName
    key: ConfigMapKey = "plan.json"


class Search(SpecValue):
    """``spec.search``."""

    algorithm: Algorithm = Algorithm.OPTIMAL
    fixed_plan_ref: FixedPlanRef | None = None
    excluded_dimensions: tuple[SearchDimension, ...] = Field(default=(), max_length=6)
    max_degrees: MaxDegrees = MaxDegrees()
    sequence_parallelism: bool = False
    pipeline_schedule: PipelineSchedule = PipelineSchedule.ONE_F_ONE_B
    timeout_seconds: Seconds = 900


class ProfilingPolicy(StrEnum):
    """When devices are measured."""

    IF_NOT_CACHED = "IfNotCached"
    ALWAYS = "Always"
    NEVER = "Never"
    """Plan from data sheets: ``galvatron_planner.catalogue``."""


class Profiling(SpecValue):
    """``spec.profiling``; device and links are names of the catalogue, for the policy ``Never`` only."""

    policy: ProfilingPolicy = ProfilingPolicy.IF_NOT_CACHED
    device: CatalogueName | None = None
    link_within_node: CatalogueName | None = None
    link_between_nodes: CatalogueName | None = None
    max_age_seconds: Seconds = 30 * 24 * 3600
    timeout_seconds: Seconds = 1800


class ImagePullPolicy(StrEnum):
    """As in pods."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class SecretReference(SpecValue):
    """A secret in the job's namespace."""

    name: ObjectName


class EnvironmentVariable(SpecValue):
    """One variable of trainers and profilers."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)
    value: str = Field(default="", max_length=4096)


class ResourceList(SpecValue):
    """CPU and memory; GPUs follow from the budget."""

    cpu: Quantity | None = None
    memory: Quantity | None = None


class Resources(SpecValue):
    """``spec.runtime.resources``, per pod."""

    requests: ResourceList = ResourceList()
    limits: ResourceList = ResourceList()


class Toleration(SpecValue):
    """As in pods."""

    key: LabelText | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(default=None, ge=0, le=31_536_000)


class SharedMemory(SpecValue):
    """``spec.runtime.sharedMemory``."""

    size_limit: MemoryQuantity | None = None


class Runtime(SpecValue):
    """``spec.runtime``: the pods; without a cluster there are none, and it is ignored."""

    image: str | None = Field(default=None, min_length=1, max_length=1024)
    image_pull_policy: ImagePullPolicy = ImagePullPolicy.IF_NOT_PRESENT
    image_pull_secrets: tuple[SecretReference, ...] = Field(default=(), max_length=16)
    env: tuple[EnvironmentVariable, ...] = Field(default=(), max_length=128)
    resources: Resources = Resources()
    shared_memory: SharedMemory = SharedMemory()
    node_selector: dict[str, Annotated[str, StringConstraints(max_length=63)]] = Field(
        default_factory=dict, max_length=32
    )
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32)
    network: Network | None = None
    template: PodOverlay | None = None


class Scheduling(SpecValue):
    """``spec.scheduling``; without a cluster it is ignored."""

    priority_class_name: ObjectName | None = None
    gang: GangScheduling | None = None
    topology: Topology | None = None


class Resume(StrEnum):
    """Whether a job goes on from its newest training checkpoint."""

    LATEST = "Latest"
    NEVER = "Never"


class CheckpointMode(StrEnum):
    """Whether training goes on while a checkpoint is written."""

    AUTO = "Auto"
    ASYNC = "Async"
    SYNC = "Sync"


class Checkpoint(SpecValue):
    """``spec.checkpoint``; the volume is needed in a cluster only."""

    volume: ClaimVolume | None = None
    directory: DirectoryPath | None = None
    period_steps: int = Field(ge=1, le=1_000_000_000)
    keep_last: int = Field(default=2, ge=1, le=1000)
    resume: Resume = Resume.LATEST
    mode: CheckpointMode = CheckpointMode.AUTO


class Observability(SpecValue):
    """``spec.observability``; the port belongs to pods that run, the period may change."""

    metrics_port: int = Field(default=9464, ge=1024, le=65_535)
    status_period_seconds: int = Field(default=15, ge=1, le=3600)


class Spec(SpecValue):
    """``spec``."""

    suspend: bool = False
    managed_by: ManagerName = CONTROLLER
    execution: Execution = Execution.TRAIN
    model: ModelFields
    budget: Budget
    training: Training
    search: Search = Search()
    profiling: Profiling = Profiling()
    runtime: Runtime = Runtime()
    scheduling: Scheduling = Scheduling()
    checkpoint: Checkpoint | None = None
    failure_policy: FailurePolicy = FailurePolicy()
    elasticity: Elasticity = Elasticity()
    lifecycle: Lifecycle = Lifecycle()
    observability: Observability = Observability()
