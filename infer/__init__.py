"""Pass two: manifest + store + prompts -> text, and the comparison of outputs."""
