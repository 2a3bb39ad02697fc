"""Pass two's engine: requests over stored features -> answers."""
