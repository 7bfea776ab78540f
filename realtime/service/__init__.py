"""A runtime as a whole: bundle, engine, source, pipeline and page."""
