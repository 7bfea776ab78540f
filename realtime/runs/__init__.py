"""A run from start to its end: order, account, queue, decode loop, resume and replay."""
