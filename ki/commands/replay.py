"""Replay: a bag through the node's code, and how far the policy is from what was commanded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Replay a bag through the node's code: chunks, errors, seams, latency, with a report.")


@app.command()
def replay(
    bag: Annotated[Path, typer.Argument(help='A rosbag2 folder, .mcap, .db3 or .bag.')],
    bundle: Annotated[str, typer.Option(help='Folder of the policy bundle.')] = '',
    robot: Annotated[str, typer.Option(help="Robot contract; without one, the bundle's own.")] = '',
    backend: Annotated[str, typer.Option(help='auto, torch, onnx, tensorrt or commissioning.')] = 'auto',
    out: Annotated[Path, typer.Option(help='Folder for replay.json and replay.html.')] = Path('out/replay'),
    mode: Annotated[
        str,
        typer.Option(help='auto, latest, queue, temporal_ensemble, rtc or guided; unless given, auto; --live: latest.'),
    ] = '',
    execute_steps: Annotated[
        int, typer.Option(help='Steps after which the next chunk is planned; 0: what the bundle recommends.')
    ] = 0,
    latency: Annotated[float, typer.Option(min=0, help="What an inference takes on the bag's clock [s].")] = 0.1,
    instruction: Annotated[str, typer.Option(help='Instead of the recorded one.')] = '',
    remap: Annotated[list[str] | None, typer.Option(help='TOPIC:=NAME: in the contract, in the bag.')] = None,
    max_chunks: Annotated[int, typer.Option(min=0, help='End after so many; 0: all.')] = 0,
    seed: Annotated[int, typer.Option(help='Of the noise.')] = 0,
    denoise_steps: Annotated[
        int, typer.Option(min=0, help='From noise to actions; 1: the mean of what it would do; 0: as the node does.')
    ] = 0,
    fail_above: Annotated[
        float, typer.Option(help='Exit with 1 when the mean error is larger, or live chunks differ; 0: never.')
    ] = 0.0,
    live: Annotated[bool, typer.Option('--live', help='Also play it over DDS to a real node, and compare.')] = False,
    attach: Annotated[str, typer.Option(help='With --live: a node that runs already, by its full name.')] = '',
    rerun: Annotated[
        Path | None, typer.Option(help='Also write the replay for the Rerun viewer, an .rrd; needs the extra rerun.')
    ] = None,
    rate: Annotated[float, typer.Option(help='With --live: 0.5 plays half as fast.')] = 1.0,
) -> None:
    """Reads BAG, runs the policy where the node would, and writes replay.json and replay.html."""
    from rich.console import Console

    from ki_policy_node.cycle.continuation import Timing
    from ki_policy_node.errors import NodeError
    from ki_policy_node.policy.backends import Wanted, check_fits, open_policy
    from ki_policy_node.replay import replay_report
    from ki_policy_node.replay.live_parity import compare
    from ki_policy_node.replay.live_parity import failure as live_failure
    from ki_policy_node.replay.replay import ReplayOptions
    from ki_policy_node.replay.replay import replay as run
    from ki_robot.contract.contract import load_contract

    check_live(live, attach, backend, mode)
    names = {}
    for each in remap or []:
        topic, found, name = each.partition(':=')
        if not found:
            raise NodeError(f'--remap is {each!r}; write TOPIC:=NAME.')
        names[topic] = name
    timing = Timing(mode or ('latest' if live else 'auto'), execute_steps)
    named = load_contract(robot) if robot else None
    check_steps(execute_steps, bundle, named)
    # Nothing moves here, so an untrained policy may show what it would do.
    wanted = Wanted(backend, bundle, seed=seed, denoise_steps=denoise_steps, allow_untrained=True)
    policy = open_policy(wanted, named, timing)
    try:
        contract = named or policy.contract
        check_fits(policy.policy_id, policy.contract, contract)
        policy.warm_up()
        options = ReplayOptions(timing, round(latency * 1e9), 50_000_000, instruction, names, max_chunks)
        replayed, parity = run(bag, contract, policy, options), None
        if live:
            parameters = {
                'robot': robot,
                'bundle': bundle,
                'backend': backend,
                'seed': seed,
                'denoise_steps': denoise_steps,
                'allow_untrained': True,
            }
            heard = listen(bag, contract, options, parameters, attach, rate, out)
            parity = compare(replayed, heard, policy)
        numbers = replay_report.write(replayed, out, live=parity)
    finally:
        policy.close()
    result = numbers['result']
    console = Console(soft_wrap=True)
    if rerun is not None:
        from ki_policy_node.replay.rerun_export import write_rerun

        console.print(f'for Rerun: {write_rerun(replayed, bag, rerun)}')
    console.print(f'{result["chunks"]} chunks over {result["seconds"]:.1f} s of {bag}')
    for name, error in result['error'].items():
        console.print(
            f'  mean error of {name}: {error:.5g}' if error is not None else f'  {name}: no recorded commands'
        )
    for problem in replayed.problems:
        console.print(problem, style='yellow', markup=False)
    problems = [replay_report.failure(numbers, fail_above)]
    if live:
        compared = numbers['live']
        console.print(
            f'live node and bag: {compared["both"]} chunks in both, {len(compared["only_live"])} only live, '
            f'{len(compared["only_replay"])} only replayed; largest difference {compared["largest_difference"]:.3g}'
        )
        problems.append(live_failure(compared))
    console.print(f'report: {out / "replay.html"}')
    if fail_above > 0.0 and any(problems):
        console.print(f'failed: {"; ".join(filter(None, problems))}')
        raise typer.Exit(1)


def check_live(live: bool, attach: str, backend: str, mode: str) -> None:
    """Refuses what cannot be compared, before anything is loaded."""
    from ki_policy_node.errors import NodeError
    from ki_policy_node.policy.backends import COMMISSIONING
    from ki_policy_node.replay.live_parity import MODE

    if attach and not live:
        raise NodeError('--attach names a running node for --live; add --live, or leave --attach out.')
    if live and mode not in ('', MODE):
        raise NodeError(
            f'--live compares chunks that depend on their observation alone; mode {mode} carries the chunk before, and '
            f'how late it was, into the next. Write --mode {MODE}, or leave it out.'
        )
    if live and backend == COMMISSIONING:
        raise NodeError(
            f'--live compares chunks that depend on their observation alone; backend {COMMISSIONING} continues a '
            'motion. Give a bundle.'
        )


def check_steps(execute_steps: int, bundle: str, named: Any) -> None:
    """Refuses more steps than a chunk has, before the weights are read; what else a bundle lacks is told there."""
    from ki_policy_node.errors import NodeError
    from ki_robot.contract.contract import load_contract

    own = Path(bundle) / 'contract.yaml'
    contract = load_contract(str(own)) if named is None and bundle and own.is_file() else named
    if contract is not None and execute_steps and not 0 < execute_steps < contract.horizon:
        raise NodeError(
            f'--execute-steps is {execute_steps}; write a number from 1 to {contract.horizon - 1}, below the horizon '
            f'of {contract.name}.'
        )


def listen(
    bag: Path, contract: Any, options: Any, parameters: dict[str, Any], attach: str, rate: float, out: Path
) -> Any:
    """The chunks of a real node that the bag is played to: one that runs already, or one started for it.

    Args:
        bag: The recording.
        contract: Its robot.
        options: Of the replay.
        parameters: robot, bundle, backend, seed and denoise_steps; without a robot, the bundle's own.
        attach: Full name of a running node, or empty.
        rate: How fast to play.
        out: Folder of live.log.
    """
    from ki.support.live import policy_node
    from ki_policy_node.replay.live_replay import play_live

    settings = {name: parameters[name] for name in ('seed', 'denoise_steps')}
    if attach:
        return play_live(bag, contract, attach, options, settings, rate, str)
    # An inference may take as long as it takes here: how late it is does not matter to what it says.
    timing = {'mode': options.timing.mode, 'execute_steps': options.timing.execute_steps, 'inference_timeout': 60.0}
    robot = parameters['robot'] or str(Path(parameters['bundle']) / 'contract.yaml')
    with policy_node(parameters | timing | {'robot': robot}, out / 'live.log') as (name, ended):
        return play_live(bag, contract, name, options, settings, rate, ended)
