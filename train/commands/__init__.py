"""The commands of ``python -m train``: options, and what they call; each loads what it needs when it runs."""
