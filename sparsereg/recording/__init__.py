"""What the code of a network does, recorded as operations."""
