"""Statements run by chDB, of which a process can open one folder."""

import json

import pytest


def run_by_chdb(statement, folder):
    """Rows as tuples."""
    session = pytest.importorskip("chdb.session").Session(str(folder))
    lines = session.query(statement, "JSONCompactEachRow").bytes().splitlines()
    return [tuple(json.loads(line)) for line in lines]
