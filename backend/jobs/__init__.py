"""One function per job that a user asks for; command line, worker and nodes call the same ones."""
