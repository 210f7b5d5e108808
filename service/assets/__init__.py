"""What the page at `/` is made of; see page.py."""
