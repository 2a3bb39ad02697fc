"""Pass one: recordings -> frames -> features -> store."""
