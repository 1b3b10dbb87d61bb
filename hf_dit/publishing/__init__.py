"""A finished run as a Hub repository: commands, card, files."""
