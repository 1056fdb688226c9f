"""The paper's experiments: as data, run by a crew of workers, kept in one file, shown on one page.

The crew, the runner and the file serve the comparison too.
"""
