"""Training data: prepared once on each node, shared by its ranks."""
