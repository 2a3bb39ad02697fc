"""Runs side by side as one HTML file."""
