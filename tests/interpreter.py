"""Kernels without a GPU."""

import os
import subprocess
import sys
from pathlib import Path


def run_interpreted(file: str) -> None:
    """Run a file of tests by itself, its kernels in Triton's interpreter. Raises CalledProcessError if it fails."""
    path = os.pathsep.join([str(Path(file).parent.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}  # read when triton is imported
    subprocess.run([sys.executable, file], env=environment, check=True)
