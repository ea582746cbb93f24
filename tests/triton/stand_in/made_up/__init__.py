"""What the stand-ins for real backends have in common. The server's own Python imports it."""
