"""The shell around the tasks: the loop, checkpoints, logs and signals. Here time passes."""
