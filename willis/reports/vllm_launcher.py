"""Run by vLLM's own Python, which has no Willis: start vLLM's server so that none of it outlives its parent.

    python vllm_launcher.py PARENT_PID [options of vLLM's API server]

The kernel is asked to kill this process when its parent dies. vLLM's engine is a child that either is forked,
or is a fresh interpreter that imports this file again; so each asks the same for itself.
"""

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


die_with_parent()

if __name__ == "__main__":
    if os.getppid() != int(sys.argv.pop(1)):
        sys.exit("the parent is gone")
    os.register_at_fork(after_in_child=die_with_parent)
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
