"""The resource planner: memory, disk, FLOPs and hours of a run, from its recipe alone; no torch."""
