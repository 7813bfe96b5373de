"""How the rows of an optimizer step are computed: which rank computes which row, and in how many pieces."""
