"""What a run reports, to its folder and to the terminal, and to W&B and TensorBoard."""
