"""What a compiled training step says of a run on a pod: memory, collectives, time."""
