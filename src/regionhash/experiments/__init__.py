"""The papers' experiments, from pictures to a report."""
