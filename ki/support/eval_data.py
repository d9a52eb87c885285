"""What `ki eval data` joins and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.evaluate.held_out import HeldOutSettings


def run(
    policy: Path, recordings: Path | None, words: list[Path], every: bool, settings: HeldOutSettings, out: Path
) -> dict[str, Any]:
    """Evaluates and writes OUT/data.json and OUT/data.png; gives the report."""
    from training.errors import TrainingError
    from training.evaluate.held_out import draw_report, evaluate, open_policy
    from training.train.run import unseen, unseen_questions
    from training.train.run_report import write_json

    bundle = open_policy(policy)
    data, note = (None, '') if recordings is None else unseen(bundle, recordings, every)
    questions, asked = unseen_questions(bundle, words)
    if data is None and questions is None:
        text = f' ({asked})' if asked else ''
        raise TrainingError(f'name recordings, or questions with --words; there is nothing to evaluate on{text}.')
    report = evaluate(bundle, data, questions, settings)
    report['data'], report['words'] = note, asked
    write_json(out / 'data.json', report)
    draw_report(report, out / 'data.png')
    return report


def show(report: dict[str, Any], out: Path) -> None:
    """The report in a few lines."""
    if report['data']:
        print(f'{report["policy"]} on {report["data"]}')
    for name, value in report.get('losses', {}).items():
        accuracy = report['token_accuracy'].get(name)
        print(f'  {name} loss {value:.3f}' + (f', {accuracy:.1%} of tokens right' if accuracy is not None else ''))
    actions = report.get('actions')
    if actions:
        steps = actions['by_step']
        print(
            f'  actions: error {actions["rms"]:.3f} (a robot that stays where it is: {actions["hold_rms"]:.3f}), '
            f'{steps[0]:.3f} at the first step, {steps[-1]:.3f} at the last'
        )
    language = report.get('language', {})
    if 'moved' in language:
        print(
            f'  language: loss {language["loss_right"]:.3f} with the right instruction, '
            f'{language["loss_swapped"]:.3f} with another; right is better in {language["right_is_better"]:.0%}; '
            f'swapping moves actions {language["moved"]:.2f} times as far as other noise'
        )
    elif language:
        one = 'the recordings hold one instruction only'
        print(
            f'  language: {one if language["instructions"] < 2 else "no flow to measure it with"}; nothing can be said'
        )
    if report['words']:
        print(report['words'])
    asked = report.get('questions')
    if asked:
        rate = 'none' if asked['accuracy'] is None else f'{asked["accuracy"]:.1%}'
        kinds = ', '.join(f'{kind} {row["rate"]:.0%} of {row["asked"]}' for kind, row in asked['kinds'].items())
        print(f'  questions: {rate} of {asked["asked"]} right ({kinds})')
    print(f'{out / "data.json"}, {out / "data.png"}: written')
