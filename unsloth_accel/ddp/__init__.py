"""How gradients become those of all ranks."""
