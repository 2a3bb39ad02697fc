"""In the place of Escribano's Python bridge: its protocol over a Unix socket, answered from the store."""
