"""The findings of `ki doctor data` as a page, with a picture of each where there is something to see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup

    from ki_policy_node.reports.charts import Panel
    from training.doctor.findings import Finding, StepRange
    from training.index.index import Index
    from training.samples.dataset import EpisodeDataset

PLACES, COLUMNS = 3, 6  # shown of a finding
AROUND = 40  # steps shown before and after a short range


@dataclass(frozen=True)
class Section:
    """One finding on the page: where it is, in words, and what it looks like."""

    finding: Finding
    where: tuple[str, ...]
    pictures: tuple[Markup, ...]


def page(findings: Sequence[Finding], index: Index | None, verdict: str, good: bool) -> str:
    """The page as HTML, in one file.

    Args:
        findings: The worst first.
        index: What their places are of.
        verdict: All of it in one sentence.
        good: Whether nothing is seriously wrong.
    """
    from ki_policy_node.reports.web_page import PageLink, Verdict, render

    sections = list(_sections(findings, index))
    episodes = [] if index is None else index.episodes
    looked = (
        f'{len(episodes)} episodes, {sum(each.steps for _, each in episodes)} steps of {index.folder}' if index else ''
    )
    told = Verdict(
        worked=(verdict,),
        sure=(f'Looked at: {looked}.', 'Of pictures, a sample was looked at.'),
        limited=[each.text for each in findings[:3]] or ['Nothing.'],
        next=[PageLink(f'finding{n}', each.finding.kind) for n, each in enumerate(sections)][:5],
        good=good,
    )
    return render(
        'data_doctor.html', title='What a model would learn from this', verdict=told, sections=sections, plotly=''
    )


def _sections(findings: Sequence[Finding], index: Index | None) -> Iterator[Section]:
    from training.errors import TrainingError
    from training.samples.dataset import EpisodeDataset

    try:
        dataset = None if index is None else EpisodeDataset(index)
    except TrainingError:
        dataset = None
    for finding in findings:
        places = finding.places if dataset is None else finding.places or _anywhere(finding, dataset)
        where = tuple(
            f'{each.recording}, episode {each.episode}, steps {each.first}..{each.end - 1}'
            for each in finding.places[:PLACES]
        )
        pictures = () if dataset is None else tuple(_pictures(finding, places[:PLACES], dataset))
        yield Section(finding, where, pictures)


def _anywhere(finding: Finding, dataset: EpisodeDataset) -> tuple[StepRange, ...]:
    """What to show of a finding about all of the data: the first episode, if a column or a camera is meant."""
    from training.doctor.findings import StepRange

    contract = dataset.contract
    if finding.field not in (*contract.state_names, *contract.action_names, *contract.camera_names):
        return ()
    number, step = (int(each) for each in dataset.starts()[0])
    entry, about = dataset.index.episodes[number]
    return (StepRange(entry.path, number, step, about.steps),)


def _pictures(finding: Finding, places: Sequence[StepRange], dataset: EpisodeDataset) -> Iterator[Markup]:
    from ki_policy_node.reports.charts import Chart
    from ki_policy_node.reports.web_page import image

    contract = dataset.contract
    cameras = [finding.field] if finding.field in contract.camera_names else list(contract.camera_names)
    columns = [name for name in contract.action_names if finding.field in (name, 'episodes')][:COLUMNS]
    columns = columns or [name for name in contract.state_names if name == finding.field]
    if finding.kind == 'skew':
        columns = list(contract.action_names[:COLUMNS])
    for place in places:
        if columns:
            panels = tuple(_panel(name, place, dataset) for name in columns)
            yield image(Chart(panels, columns=min(3, len(panels))).png(), 'png', finding.kind)
        if finding.field in contract.camera_names or finding.kind in ('contradiction', 'duplicate'):
            for camera in cameras:
                yield from _stills(camera, place, dataset)


def _panel(name: str, place: StepRange, dataset: EpisodeDataset) -> Panel:
    """State and action of one column, with a little of what is before and after."""
    from ki_policy_node.reports.charts import COLOURS, Curve, Panel

    arrays, contract = dataset.arrays(place.episode), dataset.contract
    first, end = max(0, place.first - AROUND), min(len(arrays['stamps']), place.end + AROUND)
    seconds = np.arange(first, end) / contract.rate_hz
    curves = []
    for what, names, dashed in (('state', contract.state_names, False), ('action', contract.action_names, True)):
        if name in names:
            values = arrays['state' if what == 'state' else 'actions'][first:end, names.index(name)]
            curves.append(Curve(seconds, values, what, COLOURS[int(dashed)], dashed))
    return Panel(name, tuple(curves), 's')


def _stills(camera: str, place: StepRange, dataset: EpisodeDataset) -> Iterator[Markup]:
    """The first, the middle and the last picture of a range."""
    import cv2

    from ki_policy_node.reports.web_page import image
    from ki_robot.errors import Rejected
    from training.doctor.pictures import picture_at

    for step in sorted({place.first, (place.first + place.end - 1) // 2, place.end - 1}):
        try:
            picture = picture_at(dataset, camera, place.episode, step)
        except (Rejected, OSError):
            continue
        if picture is not None:
            height = max(1, round(320 * picture.shape[0] / picture.shape[1]))
            small = cv2.resize(picture, (320, height), interpolation=cv2.INTER_AREA)
            coded = cv2.imencode('.jpg', cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
            yield image(coded.tobytes(), 'jpeg', f'{camera}, step {step}')
