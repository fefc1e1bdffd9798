"""What a task costs beyond its kernel, reads and writes, in the process that runs it.

python -m tests.benchmarks.bench_task
"""

from __future__ import annotations

import time

import numba  # noqa: F401 - as where kernels run
import numpy as np
import scipy.linalg  # noqa: F401 - a second BLAS

from stdist.graph.task import measured

REPEATS, TASKS = 7, 200


def milliseconds(repeat: int) -> tuple[float, float]:
    """Return those of the first task of a stage, and of one of the others."""
    seconds = []
    for number in range(TASKS):
        started = time.perf_counter()
        with measured(f"stage {repeat}", number, "nowhere"):
            pass
        seconds.append(time.perf_counter() - started)
    return 1e3 * seconds[0], 1e3 * float(np.median(seconds[1:]))


if __name__ == "__main__":
    milliseconds(0)
    first, other = np.median([milliseconds(1 + repeat) for repeat in range(REPEATS)], axis=0)
    print(f"first task of a stage {first:.2f} ms, others {other:.2f} ms")
