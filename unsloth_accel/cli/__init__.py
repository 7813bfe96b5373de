"""The command line, `unsloth-accel`: one command a file."""
