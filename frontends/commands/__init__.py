"""What the commands do. A function here takes the parsed arguments and gives an exit code, or None for success."""
