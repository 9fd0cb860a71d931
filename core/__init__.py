"""The method: DyCoke as pure functions on tensors. Imports torch and the standard library only."""
