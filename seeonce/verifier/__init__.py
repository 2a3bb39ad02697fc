"""verify-cache: holds the store against live encoding, and says what it proved."""
