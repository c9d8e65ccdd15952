"""What `run` does on a terminal: a chat with commands, files in messages, and an editor."""
