"""The operations: one contract each, several backends."""
