"""How much device memory this process has taken: the number that plans predict and training reports.

On CUDA that is the allocator's peak plus what lies outside the allocator (context, communicators). A CPU process has no
device memory of its own; there it is the resident set above that of an idle process, whose libraries are loaded but
which has no parameter yet. Pages of files do not count: the code of libraries and mapped data are the system's to drop
and to read again. The launcher sets MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_ARENA_MAX, without which
freed memory stays in the resident set (measured: 288 MB instead of 163 MB for one FSDP run).
"""

import ctypes
import gc
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

log = logging.getLogger(__name__)

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
"""Written to clear_refs it sets VmHWM back to VmRSS (proc(5), since Linux 4.0); that needs no privileges."""


@dataclass(frozen=True, slots=True)
class MemoryMeter:
    """Reads this process's device memory; made by :func:`idle_meter` before anything is allocated.

    Attributes:
        device: where tensors live.
        idle_bytes: what the process holds without any work of ours; 0 on CUDA.
    """

    device: torch.device
    idle_bytes: int

    def reset_peak(self) -> None:
        """Let the next :meth:`peak_bytes` forget everything before now."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError as error:
            log.warning("peak memory is counted from the start of the process", extra={"error": str(error)})

    def peak_bytes(self) -> int:
        """Most memory held at any time since :meth:`reset_peak`, above an idle process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) + self._bytes_outside_allocator()
        # The system keeps no peak without files; their pages hardly come and go, so those of now were there then.
        return max(0, _own_bytes("VmHWM") - self.idle_bytes)

    def current_bytes(self) -> int:
        """Memory held now, above an idle process."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) + self._bytes_outside_allocator()
        return max(0, _own_bytes("VmRSS") - self.idle_bytes)

    def _bytes_outside_allocator(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        return max(0, total - free - torch.cuda.memory_reserved(self.device))


def idle_meter(device: torch.device) -> MemoryMeter:
    """Take the baseline of a process that has done no work.

    Call it before processes meet and before parameters and data exist. Libraries that torch loads on
    first use are loaded here (about 90 MB of resident set, which no plan can change), so that they are not mistaken for
    training's memory.
    """
    _run_tiny_step(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return MemoryMeter(device, idle_bytes=0)
    return_freed_memory()
    return MemoryMeter(device, idle_bytes=_own_bytes("VmRSS"))


def return_freed_memory() -> None:
    """Give what this process has freed back to the system, so that the resident set counts only what is in use."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _run_tiny_step(device: torch.device) -> None:
    """Run every kind of kernel once: look-up, product, norm, attention, loss, backward, fused optimizer."""
    # Large enough for the buffers in which a CPU's matrix library packs its operands, and which it keeps (1.7 MB).
    square = torch.ones(512, 512, device=device)
    torch.mm(square, square)
    torch.mm(square.T, square)
    table = torch.nn.Embedding(16, 16, device=device)
    product = torch.nn.Linear(16, 16, device=device)
    ids = torch.zeros(2, 8, dtype=torch.long, device=device)
    hidden = product(functional.layer_norm(table(ids), (16,))).view(2, 8, 2, 8).transpose(1, 2)
    hidden = functional.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True)
    logits = functional.gelu(hidden.transpose(1, 2).reshape(16, 16))
    torch.autograd.backward(functional.cross_entropy(logits, ids.flatten()))
    torch.optim.AdamW([*table.parameters(), *product.parameters()], fused=True).step()


def _own_bytes(field: str) -> int:
    """Read ``VmRSS`` (now) or ``VmHWM`` (peak) of this process, without the pages of files that it has now."""
    pairs = (line.partition(":") for line in _STATUS.read_text().splitlines())
    values = {name: rest for name, _, rest in pairs}
    # Linux always writes both, in kB.
    return (int(values[field].split()[0]) - int(values["RssFile"].split()[0])) * 1024
