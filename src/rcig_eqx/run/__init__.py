"""What surrounds the algorithm: the loop, its guard, checkpoints, devices, memory, progress."""
