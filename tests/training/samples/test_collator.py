"""What is random about a sample follows its draw; boxes keep their place."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ki_vla.objective.patch_labels import UNKNOWN
from training.errors import TrainingError
from training.fit.initial_policy import begin
from training.samples.collator import Collator, counts, in_file_steps, requantised
from training.samples.mixture import Draw
from training.samples.things import ShownThing
from training.train.config import Augment
from training.train.distributed import ProcessGroup
from training.train.run import open_sources

MakeRun = Callable[..., Any]


def test_boxes_are_said_in_the_steps_of_the_vocabulary() -> None:
    assert requantised('<loc0000><loc0511><loc0512><loc1023> cup', 16) == '<loc0000><loc0007><loc0008><loc0015> cup'
    assert requantised('<loc0700>', 1024) == '<loc0700>'
    for bins in (16, 64, 1024):
        said = ''.join(f'<loc{step:04d}>' for step in range(bins))
        assert requantised(in_file_steps(said, bins), bins) == said


def test_packets_are_the_same_wherever_they_are_made(run_of: MakeRun) -> None:
    run = run_of()
    sources = open_sources(run, ProcessGroup())
    processor = begin(run, sources.train, [sources.vlm]).processor
    collator = pickle.loads(pickle.dumps(Collator(processor, 3, 2, 1.0, run.augment)))
    drawn = [Draw('vlm', i, sources.vlm[i], 20 + i) for i in range(5)]
    drawn += [Draw('actions', i, sources.train[i], 10 + i) for i in range(3)]
    whole = collator(drawn)
    parts = [collator(drawn[:5]), collator(drawn[5:])]
    assert torch.equal(whole.noise_BRHA, torch.cat([part.noise_BRHA for part in parts]))
    assert torch.equal(whole.tau_BR, torch.cat([part.tau_BR for part in parts]))
    assert torch.equal(whole.batch.images_BVCHW[5:], parts[1].batch.images_BVCHW)
    assert not torch.equal(whole.noise_BRHA[0], whole.noise_BRHA[1])
    again = collator([Draw('actions', 0, sources.train[0], 11)])
    assert not torch.equal(again.batch.images_BVCHW[0], whole.batch.images_BVCHW[5]), 'another draw, another crop'

    box = whole.texts.index('where is the cup?')
    plain = Collator(processor, 3, 2)(drawn)
    edges = (whole.batch.images_BVCHW[box, 0].float().mean(0) > 4) == (
        plain.batch.images_BVCHW[box, 0].float().mean(0) > 4
    )
    assert edges.float().mean() > 0.9, 'a picture with a box keeps its geometry'
    assert whole.answers[box] == '<loc0001><loc0003><loc0009><loc0010>'

    found = counts(whole.batch, _recipe('ours'))
    assert found.text + found.fast == float(whole.batch.loss_mask_BT.sum())
    assert found.flow == float(whole.batch.action_mask_BHA.sum())
    assert found.dense == 0
    assert counts(whole.batch, _recipe('ours_no_vlm')).text < found.text
    assert counts(whole.batch, _recipe('frozen'))[:2] == (0, 0)


def test_samples_without_actions_come_first_and_silent_actions_have_no_targets(run_of: MakeRun) -> None:
    run = run_of()
    sources = open_sources(run)
    processor = begin(run, sources.train, [sources.vlm]).processor
    actions = [Draw('actions', i, sources.train[i], 10 + i) for i in range(3)]
    words = [Draw('vlm', i, sources.vlm[i], 20 + i) for i in range(2)]
    packet = Collator(processor, 0)([actions[0], words[0], actions[1], words[1], actions[2]])
    assert packet.numbers == (20, 21, 10, 11, 12)
    assert packet.batch.first_acting == 2
    assert packet.batch.has_actions_B.tolist() == [False, False, True, True, True]
    silent = Collator(processor, 0, silent=True)([*actions, *words]).batch
    assert silent.target_mask_BT[:2].any(1).all()
    assert not silent.target_mask_BT[2:].any()
    assert silent.target_BT.shape[1] < packet.batch.target_BT.shape[1], 'words are shorter than actions'
    assert Collator(processor, 0, silent=True)(actions).batch.first_acting == 0


def test_subtasks_are_said_for_the_share_that_was_asked_for(run_of: MakeRun) -> None:
    run = run_of()
    sources = open_sources(run)
    processor = begin(run, sources.train, [sources.vlm]).processor
    drawn = [Draw('actions', 0, sources.train[0], number) for number in range(64)]
    for share, low, high in ((0.0, 0, 0), (0.5, 16, 48), (1.0, 64, 64)):
        batch = Collator(processor, 0, 1, share)(drawn).batch
        says = (batch.loss_mask_BT & ~batch.fast_BT).sum(1) > 1
        assert low <= int(says.sum()) <= high


def test_a_policy_of_two_levels_says_its_subtask_or_acts_on_it(run_of: MakeRun) -> None:
    run = run_of(subtasks=True)
    sources = open_sources(run)
    processor = begin(run, sources.train, [sources.vlm]).processor
    assert processor.processing.subtasks
    drawn = [Draw('actions', 0, sources.train[0], number) for number in range(64)]
    batch = Collator(processor, 0, 1, 0.5)(drawn).batch
    box = '<loc0001><loc0003><loc0009><loc0010>'
    acts = batch.has_actions_B
    assert 16 <= int(acts.sum()) <= 48
    for row, act in enumerate(acts.tolist()):
        asked = processor.tokenizer.decode(batch.prompt_BL[row][batch.prompt_mask_BL[row]].tolist())
        wanted = batch.target_BT[row][batch.loss_mask_BT[row]]
        if act:
            assert ', Subtask: ' in asked
            assert box in asked
            assert asked.endswith('Action: ')
            assert bool(batch.fast_BT[row].any())
        else:
            assert asked.endswith('Subtask: ')
            assert box not in asked
            assert box in processor.tokenizer.decode(wanted.tolist())


def test_a_subtask_with_a_box_keeps_its_picture_in_place(run_of: MakeRun) -> None:
    run = run_of()
    sources = open_sources(run)
    processor = begin(run, sources.train, [sources.vlm]).processor
    drawn = [Draw('actions', 0, sources.train[0], 5)]
    moves = Augment(crop=0.6, rotate=20.0, brightness=0.0, contrast=0.0, saturation=0.0)
    shown = {share: Collator(processor, 3, 1, share, moves)(drawn).batch for share in (0.0, 1.0)}
    ids = shown[1.0].target_BT[0][~shown[1.0].fast_BT[0]].tolist()
    assert '<loc0001><loc0003><loc0009><loc0010>' in processor.tokenizer.decode(ids)
    plain = Collator(processor, 3)(drawn).batch.images_BVCHW
    assert torch.equal(shown[1.0].images_BVCHW, plain)
    assert not torch.equal(shown[0.0].images_BVCHW, plain)


def test_a_batch_without_a_target_takes_the_same_path_as_any_other(run_of: MakeRun) -> None:
    """The end of an episode leaves FAST out; alone in a batch on one process it would part ways with the others."""
    run = run_of()
    sources = open_sources(run)
    processor = begin(run, sources.train, []).processor
    cut = next(i for i in range(len(sources.train)) if not sources.train[i].action_mask_H.all())
    batch = Collator(processor, 0)([Draw('actions', cut, sources.train[cut], 0)]).batch
    assert batch.target_BT.shape == (1, 2)
    assert not batch.target_mask_BT.any()
    assert not batch.loss_mask_BT.any()


def test_a_source_of_something_else_is_refused(run_of: MakeRun) -> None:
    run = run_of()
    sources = open_sources(run)
    processor = begin(run, sources.train, []).processor
    with pytest.raises(TrainingError, match='source odd gave a int'):
        Collator(processor, 0)([Draw('odd', 0, 3, 0)])


def _recipe(name: str) -> Any:
    from ki_vla.objective.recipes import recipe

    return recipe(name)


def test_a_box_in_the_words_of_a_step_is_where_the_thing_is_that_is_acted_on(run_of: MakeRun) -> None:
    run = run_of(model={'dense': {'labels': {'colour': ['red', 'blue']}}})
    sources = open_sources(run)
    processor = begin(run, sources.train, [sources.vlm]).processor
    boxed = replace(sources.train[0], subtask='reach for the cup <loc0256><loc0512><loc0512><loc0768>')
    known = replace(boxed, points=((0.9, 0.1), None))
    plain = replace(boxed, subtask='reach for the cup')
    drawn = [Draw('actions', 0, each, number) for number, each in enumerate((boxed, known, plain))]
    turned = Augment(crop=0.5, rotate=90.0, brightness=0.0, contrast=0.0, saturation=0.0)
    one, other = (Collator(processor, 0, how=how)(drawn).batch for how in (None, turned))
    assert one.points_BM2[0, 0].tolist() == pytest.approx([0.625, 0.375])
    assert one.points_BM2[1, 0].tolist() == pytest.approx([0.9, 0.1]), 'what is known comes first'
    assert one.points_BM2[2].isnan().all()
    assert one.points_BM2[:, 1].isnan().all()
    assert torch.equal(one.images_BVCHW[0, 0], other.images_BVCHW[0, 0]), 'a place in a picture stays there'
    assert counts(one, _recipe('ours')).dense == 2


def test_what_a_picture_shows_becomes_labels_of_patches_and_stays_where_it_is(run_of: MakeRun) -> None:
    labels = {'colour': ['red', 'blue'], 'kind': ['cup', 'ball']}
    run = run_of(model={'dense': {'labels': labels}})
    sources = open_sources(run)
    processor = begin(run, sources.train, [sources.vlm]).processor
    shown = (ShownThing({'colour': 'blue', 'kind': 'cup'}, 0.9, 0.1),)
    plain = replace(sources.train[0], subtask='')
    known = replace(plain, things=shown, points=((0.9, 0.1), None))
    drawn = [Draw('vlm', 0, sources.vlm[0], 2), Draw('actions', 0, known, 0), Draw('actions', 0, plain, 1)]
    turned = Augment(crop=0.5, rotate=90.0, brightness=0.0, contrast=0.0, saturation=0.0)
    one, other = (Collator(processor, 0, how=how)(drawn).batch for how in (None, turned))
    patch = processor.config.vision.image_size // processor.config.vision.patch_size - 1
    assert one.dense_BVNK[1, 0, patch].tolist() == [2, 1]
    assert (one.dense_BVNK[1, 1:] == UNKNOWN).all()
    assert (one.dense_BVNK[[0, 2]] == UNKNOWN).all()
    assert one.points_BM2[1, 0].tolist() == pytest.approx([0.9, 0.1])
    assert one.points_BM2[1, 1].isnan().all()
    assert one.points_BM2[[0, 2]].isnan().all()
    assert torch.equal(one.images_BVCHW[1, 0], other.images_BVCHW[1, 0]), 'a labelled picture keeps its geometry'
    assert not torch.equal(one.images_BVCHW[2, 0], other.images_BVCHW[2, 0])
    assert counts(one, _recipe('ours')).dense == 1
