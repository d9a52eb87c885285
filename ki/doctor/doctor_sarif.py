"""Findings as SARIF 2.1.0, which code hosts and editors show (docs.oasis-open.org/sarif/sarif/v2.1.0)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.doctor.findings import Finding
    from training.index.index import Index

SCHEMA = 'https://json.schemastore.org/sarif-2.1.0.json'
MOST_LOCATIONS = 10


def document(findings: Sequence[Finding], index: Index | None) -> str:
    """The findings as text; a location is a recording, and the steps of an episode in its properties."""
    kinds = sorted({finding.kind for finding in findings})
    driver = {
        'name': 'ki doctor data',
        'rules': [{'id': kind, 'shortDescription': {'text': kind.replace('_', ' ')}} for kind in kinds],
    }
    results = [_result(finding, kinds, index) for finding in findings]
    run = {'tool': {'driver': driver}, 'results': results, 'columnKind': 'unicodeCodePoints'}
    return json.dumps({'$schema': SCHEMA, 'version': '2.1.0', 'runs': [run]}, indent=1) + '\n'


def _result(finding: Finding, kinds: Sequence[str], index: Index | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        'ruleId': finding.kind,
        'ruleIndex': kinds.index(finding.kind),
        'level': finding.level,  # error, warning and note are SARIF's words, too
        'message': {'text': finding.text},
        'properties': {'field': finding.field},
    }
    where: list[dict[str, Any]] = [
        {
            'physicalLocation': {'artifactLocation': {'uri': _uri(place.recording)}},
            'properties': {'episode': place.episode, 'firstStep': place.first, 'endStep': place.end},
        }
        for place in finding.places[:MOST_LOCATIONS]
    ]
    if not where and index is not None:
        where = [{'physicalLocation': {'artifactLocation': {'uri': _uri(str(index.folder))}}}]
    return {**made, 'locations': where} if where else made


def _uri(path: str) -> str:
    """Relative to the working folder where it lies below it, as code hosts want it."""
    from urllib.parse import quote

    whole = Path(path).resolve()
    try:
        return quote(whole.relative_to(Path.cwd()).as_posix())
    except ValueError:
        return whole.as_uri()
