"""What is wrong with this machine and this installation, and the commands that mend it."""
