"""What the hostile cases of the server need: a measured server, raw requests, and hostile pictures."""
