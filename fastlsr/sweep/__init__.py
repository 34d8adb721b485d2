"""Sweeps without an account: the sweep file, its trials, their processes."""
