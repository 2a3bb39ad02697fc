"""The store behind an API: OpenAI's requests, answered by the engine of pass two."""
