"""Settings of every test process."""

import os

import torch

# Triton reads this when a kernel is defined, so it has to be set before anything imports triton;
# importing torch does not. Where there is a GPU the same tests run on it, compiled.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The suite runs one process per core.
torch.set_num_threads(1)
