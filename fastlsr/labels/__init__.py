"""The heart: methods as lists of phases, the targets of a phase, the loss towards them, and class means. Pure."""
