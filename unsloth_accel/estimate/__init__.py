"""What a run will need and take, from sizes and lengths alone: no GPU, no weights."""
