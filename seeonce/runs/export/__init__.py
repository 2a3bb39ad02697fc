"""The answers of a run where they are wanted: in Escribano's database, or in a file."""
