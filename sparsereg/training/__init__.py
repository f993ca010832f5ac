"""The objective, and what happens around a step."""
