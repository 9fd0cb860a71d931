"""What happens to visual tokens before the language model, one file per method."""
