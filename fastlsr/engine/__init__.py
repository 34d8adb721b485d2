"""The machinery of a run: the step, the optimizer and its schedule, evaluation, checkpoints."""
