"""`volo doctor`: why the service does not start, or not do well, on one page."""
