"""The embedding store: keys, entries, manifests and byte checks. No model code; imports neither pass."""
