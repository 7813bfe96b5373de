"""Writing folders that appear whole."""
