"""What a user has instead of a sparsity: memory, milliseconds, an accuracy that must stay."""
