"""The paper's experiments on synthetic subjects: models that train for minutes, compared on the same runs.

Every experiment is one command, which can be interrupted at any point and run again. It writes a JSON file
and a page that says whether the paper's finding appears.
"""
