"""What the ranks did with their time: in the Trainer's own log, and a line for each step in `metrics.jsonl`."""
