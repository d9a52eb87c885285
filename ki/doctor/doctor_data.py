"""What `ki doctor data` joins and prints: recordings, a bundle, another recording or a live robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ki.commands.data import open_index
from ki.support.progress import progress

if TYPE_CHECKING:
    from ki_robot.contract.contract import Contract
    from ki_robot.transforms import Stats
    from training.doctor.findings import Finding
    from training.evaluate.train_deploy_drift import Difference
    from training.index.index import Index

COLOURS = {'error': 'red', 'warning': 'yellow', 'note': 'cyan'}


@dataclass(frozen=True)
class LiveSource:
    """How to listen to a robot."""

    seconds: float
    wait_s: float
    namespace: str
    sim_time: bool


@dataclass(frozen=True)
class DataReport:
    """What was found: about the data alone, and where the policy will run; `compared` says what with what.

    `index` is what the places of findings are of; None without data.
    """

    findings: tuple[Finding, ...]
    differences: tuple[Difference, ...] = ()
    compared: str = ''
    index: Index | None = None

    @property
    def is_serious(self) -> bool:
        """Whether something must be fixed first."""
        return any(finding.level == 'error' for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            'serious': self.is_serious,
            'verdict': verdict(self),
            'compared': self.compared,
            'findings': [asdict(each) for each in self.findings],
            'columns': [asdict(each) for each in self.differences],
        }


@dataclass(frozen=True)
class _Trained:
    """What the other side is compared with."""

    name: str
    contract: Contract
    state: Stats
    rates_hz: Mapping[str, float] = field(default_factory=dict)


def report(
    data: Path | None,
    bundle: Path | None,
    against: Path | None,
    live: LiveSource | None,
    robot: str = 'bimanual_mobile',
) -> DataReport:
    """Looks at DATA, and compares; `robot` is the contract of data that name none.

    Raises:
        TrainingError: nothing to look at, or no usable data.
        VlaError: the bundle is damaged.
        NodeError: ROS cannot be had.
    """
    from training.doctor.diagnose import diagnose
    from training.doctor.findings import by_weight
    from training.errors import TrainingError
    from training.index.recordings import open_recordings

    if data is None and bundle is None:
        raise TrainingError('name recordings, or a policy with --bundle; there is nothing to look at.')
    if against is not None and live is not None:
        raise TrainingError('--against and --live: choose one of them.')
    if data is None and against is None and live is None:
        raise TrainingError('a bundle is compared with something: name recordings, --against, or --live.')
    index = None if data is None else _index(data, bundle, robot)
    findings: list[Finding] = [] if index is None else diagnose(index)
    if any(finding.kind == 'no_data' for finding in findings) and bundle is None:
        return DataReport(tuple(findings), index=index)
    trained = None if bundle is None and against is None and live is None else _trained(index, bundle)
    if trained is None:
        return DataReport(tuple(findings), index=index)
    looked_at = index
    if live is not None:
        rows, found, here = _live(trained, live)
    else:
        if against is not None:
            data = against
            with progress('indexing') as line:
                index = open_recordings(against, trained.contract, progress=line.to)
        assert index is not None
        rows, found = _recorded(trained, index)
        here = str(data)
    return DataReport(
        tuple(by_weight([*findings, *found])), tuple(rows), f'{here} compared with {trained.name}', looked_at
    )


def _index(data: Path, bundle: Path | None, robot: str) -> Index:
    """Of bags the index that was made of them, with its options; the simulator's arrays need none."""
    from ki_robot.contract.contract import load_contract
    from training.evaluate.held_out import open_policy
    from training.index.recordings import is_arrays, open_recordings

    if not is_arrays(data):
        return open_index(data)
    return open_recordings(data, load_contract(robot) if bundle is None else open_policy(bundle).contract)


def _trained(index: Index | None, bundle: Path | None) -> _Trained:
    from training.evaluate.held_out import open_policy
    from training.evaluate.train_deploy_drift import recorded_rates
    from training.fit.stats import compute_stats
    from training.samples.dataset import EpisodeDataset

    rates = {} if index is None else recorded_rates(index)
    if bundle is not None:
        policy = open_policy(bundle)
        # The rates of the data at hand are those of training only where it is the data of training.
        own = index is not None and policy.provenance.get('data_hash') == index.hash
        return _Trained(policy.policy_id, policy.contract, policy.processor.state_stats, rates if own else {})
    assert index is not None
    stats = compute_stats(EpisodeDataset(index))['state']
    return _Trained(str(index.folder), index.contract, stats, rates)


def _recorded(trained: _Trained, index: Index) -> tuple[Sequence[Difference], list[Finding]]:
    from ki_robot.policy_values import policy_state
    from training.doctor.diagnose import known_limits
    from training.doctor.findings import ERROR, Finding
    from training.errors import TrainingError
    from training.evaluate import train_deploy_drift

    found = train_deploy_drift.mismatch_findings(trained.contract, index.contract)
    rows: Sequence[Difference] = ()
    if index.contract.state_names == trained.state.names:
        try:
            states_TS = train_deploy_drift.recorded_states(index)
        except TrainingError as error:
            return rows, [*found, Finding(ERROR, '', 'no_data', str(error))]
        rows = train_deploy_drift.differences(
            trained.contract.state,
            trained.state,
            policy_state(trained.contract, states_TS),
            known_limits(trained.contract),
        )
    found += train_deploy_drift.difference_findings(rows)
    return rows, found + train_deploy_drift.rate_findings(trained.rates_hz, train_deploy_drift.recorded_rates(index))


def _live(trained: _Trained, live: LiveSource) -> tuple[Sequence[Difference], list[Finding], str]:
    from ki_policy_node.common.live_probe import listen
    from ki_robot.policy_values import policy_state
    from training.doctor.diagnose import known_limits
    from training.doctor.pictures import dark_findings
    from training.evaluate import train_deploy_drift

    with progress(f'listening for {live.seconds:g} s'):
        heard = listen(trained.contract, live.seconds, live.wait_s, live.namespace, live.sim_time)
    rows = train_deploy_drift.differences(
        trained.contract.state,
        trained.state,
        policy_state(trained.contract, heard.states_TS),
        known_limits(trained.contract),
    )
    found = train_deploy_drift.difference_findings(rows)
    found += train_deploy_drift.stream_findings(
        trained.contract, heard.health, heard.rates_hz, heard.moments, heard.blind
    )
    found += train_deploy_drift.rate_findings(trained.rates_hz, heard.rates_hz)
    for camera, images in heard.images.items():
        found += dark_findings(camera, images)
    return rows, found, f'{len(heard.states_TS)} states of the live robot in {heard.seconds:.1f} s'


def show(made: DataReport) -> None:
    """A table of columns where two sides are compared, a line per finding, and the verdict."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    if made.compared:
        print(made.compared)
    if made.differences:
        table = Table('column', 'unit', 'trained', 'q01..q99', 'here', 'from..to', 'shift', 'outside', box=None)
        for row in made.differences:
            table.add_row(
                row.column,
                row.unit,
                f'{row.trained_mean:.4g}',
                f'{row.trained_low:.4g}..{row.trained_high:.4g}',
                f'{row.mean:.4g}',
                f'{row.low:.4g}..{row.high:.4g}',
                f'{row.shift:+.1f}',
                f'{row.outside:.0%}',
                style=COLOURS.get(row.level, ''),
            )
        # As wide as it must be: a pipe is not a terminal of 80 columns.
        (console if console.is_terminal else Console(width=200)).print(table)
    for finding in made.findings:
        console.print(f'{finding.level:>8}  ', style=COLOURS[finding.level], end='')
        console.print(finding.text, markup=False)
    print(verdict(made))


def write_files(made: DataReport, html: Path | None, sarif: Path | None, trim: Path | None) -> None:
    """The files that were asked for.

    Raises:
        TrainingError: a list without data, or one that would leave nothing.
    """
    from ki.doctor import doctor_page, doctor_sarif
    from ki_common.files import write_text
    from training.doctor.trim import trimmed, write_list
    from training.errors import TrainingError

    if html is not None:
        write_text(html, doctor_page.page(made.findings, made.index, verdict(made), not made.is_serious))
    if sarif is not None:
        write_text(sarif, doctor_sarif.document(made.findings, made.index))
    if trim is not None:
        if made.index is None:
            raise TrainingError('--trim writes a list of recordings; name some.')
        write_list(trim, trimmed(made.index, made.findings))


def verdict(made: DataReport) -> str:
    """All of it in one sentence."""
    count = {level: sum(finding.level == level for finding in made.findings) for level in COLOURS}
    if made.is_serious:
        what = 'fix it before a policy runs here' if made.compared else 'a model would learn wrong things from this'
        return f'Seriously wrong ({_counted(count["error"], "error")}): {what}.'
    if count['warning']:
        return f'Usable; look at {_counted(count["warning"], "warning")} first.'
    if made.compared:
        return 'Nothing suspicious: what the policy will see lies where it was trained.'
    return 'Nothing suspicious.'


def _counted(count: int, what: str) -> str:
    return f'{count} {what}' + ('' if count == 1 else 's')
