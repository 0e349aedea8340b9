"""Memory that torch frees in the thread that Ray Train runs the loop in is used again."""

import os
import subprocess
import sys

from willis.training.distributed import WORKER_VARIABLES

STEPS, BLOCKS, BLOCK_BYTES = 40, 24, 4 * 2**20  # more per step than the 64 MiB of one heap of an arena
PROGRAM = f"""
import resource, threading
import torch
from willis.training.loop import reuse_freed_memory

def faults_of(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        blocks = [torch.ones({BLOCK_BYTES} // 4) for _ in range({BLOCKS})]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    reuse_freed_memory()
    faults_of(5)
    print(faults_of({STEPS}))

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def _faults(variables: dict[str, str]) -> int:
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=others | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_worker_asks_the_kernel_for_less_than_a_tenth_of_what_another_thread_does() -> None:
    assert 10 * _faults(WORKER_VARIABLES) < _faults({})
