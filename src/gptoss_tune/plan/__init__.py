"""What a run needs, from its recipe alone: memory, disk, operations, hours. No torch."""
