"""`volo predict`: names what is in files, a few for people to read or a million into a table."""
