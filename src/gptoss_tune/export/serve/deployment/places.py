"""Where a container finds things, and where it listens."""

MODEL_MOUNT = "/models"
"""Folder that holds the model's folder."""
BUNDLE_MOUNT = "/opt/bundle"
"""Folder that holds the bundle's own files."""
PORT = 8000
SHARED_MEMORY_GB = 16
"""Shared memory of a container, for the processes of tensor parallelism: 64 MB is the default, on
which they stop; it is a limit, not a reservation."""
TO_SCRIPT = 'CDPATH=\'\' cd -- "$(dirname -- "$0")"'
"""Shell: goes to the folder of the script that runs. With CDPATH set, ``cd`` may go elsewhere, and
prints where to."""
