"""A reporter that keeps what it is told."""

from regionhash.reporter import Reporter


def told(notices):
    """The lines that notices tell."""
    reporter = Recording()
    notices.tell(reporter)
    return reporter.notes


class Recording(Reporter):
    """Lists of everything, in order."""

    def __init__(self):
        self.stages, self.steps, self.notes, self.skips, self.epochs = [], [], [], [], []

    def stage(self, name):
        self.stages.append(name)
        return super().stage(name)

    def progress(self, done, total):
        self.steps.append((done, total))

    def note(self, line):
        self.notes.append(line)

    def skipped(self, image_id, reason):
        self.skips.append((image_id, reason))

    def epoch(self, report, n_epochs):
        self.epochs.append(report)
