"""What trained networks have learnt, read from their checkpoints."""
