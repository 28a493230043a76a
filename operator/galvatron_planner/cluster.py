"""Where a plan runs: equal nodes of equal devices, and the groups of devices that communicate."""

from enum import StrEnum
from typing import Self

from pydantic import PositiveInt, model_validator

from galvatron_planner.documents import Value


class DeviceKind(StrEnum):
    """What a device is: a GPU (NCCL), or a CPU process (gloo) for tests and demonstrations."""

    CUDA = "cuda"
    CPU = "cpu"


class Cluster(Value):
    """The devices of a job; global ranks are numbered node by node.

    Attributes:
        num_nodes: nodes (pods) of the job.
        devices_per_node: devices on each of them.
        device_kind: GPU or CPU process.
        device_memory_bytes: memory that a plan may use on each device, everything included.
    """

    num_nodes: PositiveInt
    devices_per_node: PositiveInt
    device_kind: DeviceKind
    device_memory_bytes: PositiveInt

    @model_validator(mode="after")
    def _check_power_of_two(self) -> Self:
        if self.num_devices & (self.num_devices - 1):
            raise ValueError(
                f"{self.num_devices} devices are no power of two; degrees of parallelism are powers of two"
            )
        return self

    @property
    def num_devices(self) -> int:
        """Devices of the whole job."""
        return self.num_nodes * self.devices_per_node


class Group(Value):
    """A family of communicating groups: ``size`` devices, ``stride`` ranks apart.

    In one step all groups of the family communicate at the same time, which is how they are measured; size and stride
    together say whether a group stays inside its node, so links need no further description.
    """

    size: PositiveInt
    stride: PositiveInt

    def members(self, rank: int) -> tuple[int, ...]:
        """List the global ranks of the group that ``rank`` belongs to."""
        block = self.size * self.stride
        base = rank // block * block + rank % self.stride
        return tuple(base + i * self.stride for i in range(self.size))


def stage_pairs(stage_index: int, *, devices_per_stage: int, devices_per_node: int) -> Group:
    """Give the family of pairs over which a stage and the next one transfer, each rank with its partner.

    Partners are ``devices_per_stage`` ranks apart. Of stages smaller than a node, neighbours share one, but for the
    last stage of a node and the first of the next. Over these, transfers are priced as if all devices of the node
    sent, since pairs across nodes are measured that way: pessimistic where the devices of a node share a network card.
    """
    ends_a_node = (stage_index + 1) * devices_per_stage % devices_per_node == 0
    return Group(size=2, stride=max(devices_per_stage, devices_per_node) if ends_a_node else devices_per_stage)


def groups(num_devices: int) -> tuple[Group, ...]:
    """List every group that a strategy on ``num_devices`` devices can use, smallest first."""
    sizes = [2**k for k in range(1, num_devices.bit_length()) if 2**k <= num_devices]
    return tuple(
        Group(size=size, stride=2**k)
        for size in sizes
        for k in range((num_devices // size).bit_length())
        if size * 2**k <= num_devices
    )
