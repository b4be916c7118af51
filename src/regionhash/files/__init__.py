"""Files: written whole or not at all, and read or refused in one line."""
