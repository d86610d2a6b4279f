"""One run's folder: its rows, tensors, manifest and locks, and the processes that share it."""
