"""Runs: what they ask, how they are carried out, what they leave on disk, and what is made of that."""
