"""Run folders and the papers' figures -> tables. Loads no torch."""
