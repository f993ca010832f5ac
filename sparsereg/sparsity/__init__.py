"""What is left, what it costs, how a target is met."""
