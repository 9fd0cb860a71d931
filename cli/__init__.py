"""The `dycoke` command. Heavy packages are imported inside the commands that use them."""
