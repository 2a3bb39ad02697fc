"""Pass two: manifest + store + prompts -> text."""
