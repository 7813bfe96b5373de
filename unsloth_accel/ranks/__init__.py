"""What a process knows of its ranks, and how they meet outside collectives."""
