"""Which channel depends on which gate; changes nothing."""
