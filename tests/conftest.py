"""Before anything imports numpy."""
from __future__ import annotations

import os

# The threads of numpy's matrix products spin while they wait, which costs most where several tests run at once.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
