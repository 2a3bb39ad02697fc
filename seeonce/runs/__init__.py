"""What runs leave on disk, and what is made of it. No model code."""
