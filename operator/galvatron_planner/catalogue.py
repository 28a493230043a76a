"""THE TABLES of devices and links: what data sheets say, for plans without measuring and for model FLOPs utilization.

Every figure is the maker's for dense computation, one direction and one device; what software sustains of it stands
beside it as a share, with its source or marked as an assumption. Gigabytes of memory are read as 10^9 bytes: some 6 %
below what drivers report, which leaves room for fragmentation.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, TypeVar

from galvatron_planner.cluster import Cluster, DeviceKind
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import Precision

MAX_DEVICES: Final = 16_384
"""Largest cluster that can be described: the one on which Llama 3 405B was trained (arXiv 2407.21783)."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One port between devices.

    Attributes:
        name: as users write it.
        bandwidth: bytes per second and direction, data sheet.
        efficiency: share of it that large collectives sustain.
        latency_seconds: one hop.
        per_node: whether the devices of a node share one port, instead of each having its own.
    """

    name: str
    bandwidth: float
    efficiency: float
    latency_seconds: float
    per_node: bool = False

    @property
    def sustained_bandwidth(self) -> float:
        """Bytes per second and direction that large collectives reach."""
        return self.bandwidth * self.efficiency


@dataclass(frozen=True, slots=True)
class Links:
    """What connects the devices of a cluster."""

    within_node: LinkSpec
    between_nodes: LinkSpec


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One kind of device.

    Attributes:
        name: as users write it.
        reported_as: how the names begin that ``torch.cuda.get_device_name`` gives; empty for processes.
        memory_bytes: all of it.
        memory_bandwidth: bytes per second, data sheet.
        fp64: dense FP64 operations per second, on tensor cores where there are such.
        fp32: dense FP32 operations per second (no TF32: torch's default for matrix products).
        bf16: dense BF16 operations per second with FP32 accumulation; None where the device has no such units.
        num_multiprocessors: parts that work on one tile of a matrix product each.
        matrix_efficiency: share of the peak that large matrix products sustain.
        within_node: usual link inside a node.
        between_nodes: usual link between nodes.
        kind: GPU or CPU process.
    """

    name: str
    reported_as: str
    memory_bytes: int
    memory_bandwidth: float
    fp64: float
    fp32: float
    bf16: float | None
    num_multiprocessors: int
    matrix_efficiency: float
    within_node: str
    between_nodes: str
    kind: DeviceKind = DeviceKind.CUDA

    def peak_flops(self, precision: Precision) -> float:
        """Operations per second in a number format.

        Raises:
            InvalidInput: when the device does not compute in it.
        """
        peak = {Precision.FP64: self.fp64, Precision.FP32: self.fp32, Precision.BF16: self.bf16}[precision]
        if peak is None:
            raise InvalidInput(f"{self.name} has no units for {precision}", remedy="use FP32, or another device")
        return peak


@dataclass(frozen=True, slots=True)
class ClusterDescription:
    """Equal nodes of one kind of device, as a text such as ``2x8xa100-80gb`` describes them."""

    device: DeviceSpec
    links: Links
    num_nodes: int
    devices_per_node: int

    def cluster(self, device_memory_bytes: int | None = None) -> Cluster:
        """Give the devices to plan for; their whole memory unless stated otherwise."""
        return Cluster(
            num_nodes=self.num_nodes,
            devices_per_node=self.devices_per_node,
            device_kind=self.device.kind,
            device_memory_bytes=device_memory_bytes or self.device.memory_bytes,
        )


# Latency: one hop of a ring with the protocol LL128 as NCCL counts it (src/graph/tuning.cc: NVLink, PCI, net).
_NVLINK_HOP, _PCI_HOP, _NET_HOP = 1.9e-6, 2.5e-6, 4.0e-6
# Efficiency of NVLink: what NCCL counts with (src/graph/topo.h: 20, 20.6 and 40.1 GB/s of each 25 or 50 GB/s). Of PCIe:
# an assumption; NCCL counts 12 of the 15.75 GB/s of PCIe 3, but only 6 to 16 GB/s between sockets, and a ring over a
# whole node crosses those as well. Of networks: an assumption; after headers they carry 0.94 to 0.97.
_NETWORK = 0.92
LINKS: Final = {
    link.name: link
    for link in (
        # NVIDIA: 600 GB/s (A100), 900 GB/s (H100), 1,800 GB/s (B200) in both directions together.
        LinkSpec("nvlink3", 300e9, 0.80, _NVLINK_HOP),
        LinkSpec("nvlink4", 450e9, 0.82, _NVLINK_HOP),
        LinkSpec("nvlink5", 900e9, 0.80, _NVLINK_HOP),
        # PCI-SIG: 8, 16 and 32 GT/s a lane, 16 lanes, 128 of 130 bits are data.
        LinkSpec("pcie3", 15.75e9, 0.50, _PCI_HOP),
        LinkSpec("pcie4", 31.5e9, 0.50, _PCI_HOP),
        LinkSpec("pcie5", 63.0e9, 0.50, _PCI_HOP),
        # InfiniBand Trade Association: 100, 200 and 400 Gbit/s a port. A card for each device as in DGX A100 and H100;
        # of EDR one for a node, as in the cluster of Galvatron (arXiv 2211.13878, section 5).
        LinkSpec("infiniband-edr", 12.5e9, _NETWORK, _NET_HOP, per_node=True),
        LinkSpec("infiniband-hdr", 25e9, _NETWORK, _NET_HOP),
        LinkSpec("infiniband-ndr", 50e9, _NETWORK, _NET_HOP),
        # IEEE 802.3, one card for a node. Hop: an assumption, a TCP round trip in a rack takes 30 to 60 us.
        LinkSpec("ethernet-10g", 1.25e9, _NETWORK, 30e-6, per_node=True),
        LinkSpec("ethernet-25g", 3.125e9, _NETWORK, 30e-6, per_node=True),
        LinkSpec("ethernet-100g", 12.5e9, _NETWORK, 30e-6, per_node=True),
        # gloo between processes of one machine; all of it is an assumption.
        LinkSpec("loopback", 4e9, 0.5, 50e-6),
    )
}

# Share of the peak that large matrix products sustain in training. Data sheets do not say: Ampere and Hopper are set so
# that layers and runs come out near what is published (docs/adr/0012-device-catalogue.md; whole runs reach 44 to 52 %
# of the peak of A100, Narayanan et al. 2021, arXiv 2104.04473, and 38 to 43 % of that of H100, Llama 3, arXiv
# 2407.21783, where they communicate and wait as well), the others are assumptions.
_AMPERE, _HOPPER, _ADA, _TURING, _CPU = 0.75, 0.55, 0.65, 0.75, 0.60
_G, _T = 10**9, 1e12
DEVICES: Final = {
    device.name: device
    for device in (
        # NVIDIA data sheets of each product; where they give sparse figures only, half of them. Columns: memory, its
        # bandwidth, FP64, FP32, BF16, multiprocessors (architecture white papers).
        DeviceSpec("a100-40gb", "NVIDIA A100", 40 * _G, 1.555e12, 19.5 * _T, 19.5 * _T, 312 * _T, 108, _AMPERE,
                   "nvlink3", "infiniband-hdr"),
        DeviceSpec("a100-80gb", "NVIDIA A100", 80 * _G, 2.039e12, 19.5 * _T, 19.5 * _T, 312 * _T, 108, _AMPERE,
                   "nvlink3", "infiniband-hdr"),
        DeviceSpec("h100", "NVIDIA H100", 80 * _G, 3.35e12, 67 * _T, 67 * _T, 989 * _T, 132, _HOPPER,
                   "nvlink4", "infiniband-ndr"),
        DeviceSpec("h100-pcie", "NVIDIA H100 PCIe", 80 * _G, 2.0e12, 51 * _T, 51 * _T, 756 * _T, 114, _HOPPER,
                   "pcie5", "infiniband-ndr"),
        DeviceSpec("h100-nvl", "NVIDIA H100 NVL", 94 * _G, 3.9e12, 60 * _T, 60 * _T, 835 * _T, 132, _HOPPER,
                   "pcie5", "infiniband-ndr"),
        DeviceSpec("h200", "NVIDIA H200", 141 * _G, 4.8e12, 67 * _T, 67 * _T, 989 * _T, 132, _HOPPER,
                   "nvlink4", "infiniband-ndr"),
        DeviceSpec("gh200", "NVIDIA GH200", 96 * _G, 4.0e12, 67 * _T, 67 * _T, 989 * _T, 132, _HOPPER,
                   "nvlink4", "infiniband-ndr"),
        DeviceSpec("b200", "NVIDIA B200", 180 * _G, 8.0e12, 37 * _T, 75 * _T, 2250 * _T, 148, _HOPPER,
                   "nvlink5", "infiniband-ndr"),
        DeviceSpec("a10", "NVIDIA A10", 24 * _G, 0.6e12, 0.49 * _T, 31.2 * _T, 125 * _T, 72, _AMPERE,
                   "pcie4", "ethernet-100g"),
        DeviceSpec("a30", "NVIDIA A30", 24 * _G, 0.933e12, 10.3 * _T, 10.3 * _T, 165 * _T, 56, _AMPERE,
                   "pcie4", "ethernet-100g"),
        DeviceSpec("l4", "NVIDIA L4", 24 * _G, 0.3e12, 0.47 * _T, 30.3 * _T, 121 * _T, 58, _ADA,
                   "pcie4", "ethernet-100g"),
        DeviceSpec("l40s", "NVIDIA L40S", 48 * _G, 0.864e12, 1.4 * _T, 91.6 * _T, 362 * _T, 142, _ADA,
                   "pcie4", "ethernet-100g"),
        DeviceSpec("rtx-4090", "NVIDIA GeForce RTX 4090", 24 * _G, 1.008e12, 1.3 * _T, 82.6 * _T, 165 * _T, 128, _ADA,
                   "pcie4", "ethernet-25g"),
        # Turing computes BF16 by conversion to FP32 only.
        DeviceSpec("rtx-titan", "NVIDIA TITAN RTX", 24 * _G, 0.672e12, 0.51 * _T, 16.3 * _T, None, 72, _TURING,
                   "pcie3", "infiniband-edr"),
        # No data sheet: 3 GHz, two units of eight FP32 numbers, multiply and add; a sixteenth of a server's memory
        # bandwidth; BF16 is converted.
        DeviceSpec("cpu-core", "", 4 * _G, 0.012e12, 0.048 * _T, 0.096 * _T, 0.096 * _T, 1, _CPU,
                   "loopback", "ethernet-10g", DeviceKind.CPU),
    )
}  # fmt: skip


def device(name: str) -> DeviceSpec:
    """Look up a device.

    Raises:
        InvalidInput: when the catalogue has none of this name; names those that are close.
    """
    return _look_up(name, DEVICES, "device")


def links(device: DeviceSpec, *, within_node: str | None = None, between_nodes: str | None = None) -> Links:
    """Connect devices by their usual links, or by those named.

    Raises:
        InvalidInput: when the catalogue has no such link; names those that are close.
    """
    return Links(
        within_node=_look_up(within_node or device.within_node, LINKS, "link"),
        between_nodes=_look_up(between_nodes or device.between_nodes, LINKS, "link"),
    )


def reported_device(reported_name: str) -> DeviceSpec | None:
    """Find the device that torch calls ``reported_name``; None when it is not in the catalogue.

    Devices that differ in memory only share a name: the first of them is given.
    """
    known = (device for device in DEVICES.values() if device.reported_as)
    matching = [d for d in known if re.match(rf"{re.escape(d.reported_as)}(?![0-9A-Za-z])", reported_name)]
    return max(matching, key=lambda d: len(d.reported_as), default=None)


_Entry = TypeVar("_Entry")
_CLUSTER = re.compile(r"^(?:(\d+)x)?(\d+)x([a-z][a-z0-9-]*)(?:/([a-z0-9-]+))?(?:\+([a-z0-9-]+))?$")


def parse_cluster(text: str) -> ClusterDescription:
    """Read ``[NODESx]DEVICESxDEVICE[/LINK-INSIDE][+LINK-BETWEEN]``.

    For instance ``8xa100-80gb`` (one node), ``2x8xl40s/pcie4+infiniband-ndr``, ``2048x8xh100``.

    Raises:
        InvalidInput: when it is no such text, names something unknown, or describes too many devices.
    """
    match = _CLUSTER.match(text.strip().lower())
    if match is None:
        raise InvalidInput(
            f"{text!r} describes no cluster",
            remedy="write [NODESx]DEVICESxNAME[/LINK-INSIDE][+LINK-BETWEEN], for instance 8xa100-80gb or"
            " 2x8xh100+infiniband-ndr",
        )
    num_nodes, devices_per_node = int(match[1] or 1), int(match[2])
    num_devices = num_nodes * devices_per_node
    if not 1 <= num_devices <= MAX_DEVICES or num_devices & (num_devices - 1):
        raise InvalidInput(
            f"{text!r} describes {num_devices} devices",
            remedy=f"use a power of two up to {MAX_DEVICES}: degrees of parallelism are powers of two",
        )
    spec = device(match[3])
    return ClusterDescription(
        device=spec,
        links=links(spec, within_node=match[4], between_nodes=match[5]),
        num_nodes=num_nodes,
        devices_per_node=devices_per_node,
    )


def _look_up(name: str, table: dict[str, _Entry], what: str) -> _Entry:
    if name in table:
        return table[name]
    close = [other for other in table if other.startswith(name)] or get_close_matches(name, table, n=3, cutoff=0.5)
    raise InvalidInput(f"no {what} is called {name!r}", remedy=f"use one of {', '.join(close or sorted(table))}")
