"""When a training checkpoint is written: while training waits, or by a thread from a copy while it goes on.

The copy lies in host memory: as much again as the states of this node's devices. On CPU that is the devices' own
memory, which is why jobs on CPU wait unless they ask for more.
"""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse

from galvatron_runtime.checkpoint import CheckpointStore, TrainingState


@dataclass(frozen=True, slots=True)
class Saved:
    """A training checkpoint that is complete.

    Attributes:
        step: of which it is.
        seconds: from the wish to the last byte.
    """

    step: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Upload:
    step: int
    started: float
    future: Future[Any]


class Saver:
    """Saves the training checkpoints of one attempt; all ranks call its methods together.

    It has state because a checkpoint may be under way while training goes on.
    """

    def __init__(self, store: CheckpointStore | None, device: torch.device) -> None:
        """Make what saving in the background needs.

        Args:
            store: where checkpoints go, if there are any.
            device: of the tensors.
        """
        self._store = store
        self._upload: _Upload | None = None
        if store is not None and store.settings.in_background:
            # A group of its own: two threads must not mix their collectives in one.
            self._group = dist.new_group(backend="gloo")
            is_cuda = device.type == "cuda"
            # Pinned memory is kept for the next time, or every copy would be as slow as the first.
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=is_cuda,
                    use_shared_memory=False,
                    use_async_staging=False,
                    use_non_blocking_copy=is_cuda,
                )
            )

    def step_finished(self, state: TrainingState, step: int, *, is_last: bool) -> Saved | None:
        """Save, or begin to, when it is due after ``step``; one that is under way comes first.

        Args:
            state: of this rank.
            step: that has been made.
            is_last: whether training ends with it, although there would be more steps.

        Returns:
            The newest checkpoint that has been completed since the last step, if any.

        Raises:
            CheckpointUnusable: when one cannot be written.
        """
        store = self._store
        if store is None or not (is_last or store.is_due(step)):
            return self.wait() if self._upload is not None and self._upload.future.done() else None
        started = time.perf_counter()
        if not store.settings.in_background:
            store.save(state, step)
            return Saved(step, time.perf_counter() - started)
        before = self.wait()
        with store.writing(state, step) as path:
            answer = state_dict_saver.async_save(
                dict(state.tensors()), checkpoint_id=path, process_group=self._group, async_stager=self._stager
            )
        # Stagers with a thread of their own answer with two futures; ours has none.
        future = answer.upload_completion if isinstance(answer, AsyncSaveResponse) else answer
        self._upload = _Upload(step, started, future)
        return before

    def wait(self) -> Saved | None:
        """Wait for the checkpoint that is under way.

        Raises:
            CheckpointUnusable: when it could not be written.
        """
        if self._store is None or self._upload is None:
            return None
        upload, self._upload = self._upload, None
        try:
            upload.future.result()
            self._store.complete(upload.step)
        except (OSError, CheckpointException) as error:
            raise self._store.failure(upload.step, error) from error
        return Saved(upload.step, time.perf_counter() - upload.started)
