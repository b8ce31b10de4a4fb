"""The same model on a GPU: one token's layers as launches that are captured once."""
