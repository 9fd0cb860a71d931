"""Where the time of a request goes: dycoke profile."""
