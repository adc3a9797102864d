"""Queues for kernels that draw the pieces of their work."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from q8c.codegen.draw import QUEUE_WORDS, SLOT_BYTES


class Queues:
    """Slots of one run, and the queue of each of its threads."""

    def __init__(self, threads: int) -> None:
        self.slots = np.zeros((threads, SLOT_BYTES // 8), np.int64)
        self.queues = np.zeros((threads, QUEUE_WORDS), np.int64)
        self.queues[:, 0] = self.slots.ctypes.data
        self.queues[:, 2], self.queues[:, 3] = np.arange(threads), threads
        self.start(1)

    def start(self, kernel: int) -> None:
        """Go on to the kernel of that number."""
        self.queues[:, 1] = kernel

    def __getitem__(self, thread: int) -> NDArray[np.int64]:
        queue: NDArray[np.int64] = self.queues[thread]
        return queue
