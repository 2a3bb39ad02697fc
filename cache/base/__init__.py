"""Errors, the home folder, files, JSON, SQLite, and sizes and paths as users write them."""
