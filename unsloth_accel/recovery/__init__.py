"""What a training run needs to stop, to be killed and to go on, with nothing lost."""
