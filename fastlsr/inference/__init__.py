"""What trained networks give: features, logits, soft labels of a teacher, the weights as a file."""
