"""Building: the oracle says what is stale, doit runs it, DVC keeps it."""
