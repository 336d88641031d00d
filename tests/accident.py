"""Runs a program of this project with an accident, which the environment names. For torchrun:

LIMIT=20000 torchrun --nproc_per_node 2 accident.py train.py ...           no file may grow beyond so many bytes
KILL_IN=5 torchrun --nproc_per_node 2 accident.py train.py ...             rank 1 is killed in step 5 (0 is the first)
"""

import os
import resource
import runpy
import signal
import sys
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import ranks

begin_step = ranks.seed_noise  # what each step begins with


def begin_step_or_die(seed: int, step: int) -> None:
    if ranks.rank() == 1 and step == int(os.environ["KILL_IN"]):
        os.kill(os.getpid(), signal.SIGKILL)
    begin_step(seed, step)


if "KILL_IN" in os.environ:
    ranks.seed_noise = begin_step_or_die
if "LIMIT" in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]),) * 2)
runpy.run_path(sys.argv[0], run_name="__main__")
