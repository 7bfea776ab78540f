"""A runtime as a whole: recorder, decoder and page, a process each, and what starts and watches them."""
