"""Changes a traced network, not its outputs."""
