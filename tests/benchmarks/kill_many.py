"""Twenty SIGKILLs of client, worker or scheduler at random moments, each followed by a resume.

python -m tests.benchmarks.kill_many [repeats] [seed]
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

from distributed import Client, LocalCluster

from stdist.graph import InProcess, start
from tests import toy
from tests.graph import kill


def main(repeats=20, seed=0):
    """Return the number of runs that did not end with the right bytes."""
    draw, wrong = random.Random(seed), 0
    victims = [kill.kill_client, kill.kill_worker, kill.kill_scheduler]
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        base = Path(folder) / "base.zarr"
        start(toy.generate_program(base), InProcess(), block_length=1024)
        complete = Path(shutil.copytree(base, Path(folder) / "reference.zarr"))
        start(toy.scale_program(complete, rounds=3), InProcess(), block_length=1024)
        reference = toy.contents(complete)
        for number in range(repeats):
            store = Path(shutil.copytree(base, Path(folder) / f"{number}.zarr"))
            victim, delay = draw.choice(victims), draw.uniform(0, 1.5)
            during = victim(store, client, delay)
            different = kill.resume_and_compare(store, client, reference)
            wrong += bool(different)
            print(
                f"{number + 1:3d} {victim.__name__:15s} after {delay:4.2f} s "
                f"{'during the run' if during else 'too late':15s} "
                f"{'differs: ' + ', '.join(different) if different else 'same bytes'}",
                flush=True,
            )
    print(f"{repeats - wrong} of {repeats} ended with the same bytes")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
