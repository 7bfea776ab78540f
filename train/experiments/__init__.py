"""The paper's experiments on synthetic subjects: models trained for minutes, compared on the same runs.

Every experiment is one command, can be interrupted at any point and given again, and ends with a JSON file
and a page that says whether the paper's finding appears.
"""
