"""Which topic of a bag is which stream, output or instruction of the node that it is played to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ki_bags.reader import Bag
from ki_bags.topics import find_topic
from ki_policy_node.errors import NodeError
from ki_robot.contract.contract import Contract
from ki_robot.contract.controller_kinds import CONTROLLER_KINDS
from ki_robot.contract.parts import Output
from ki_robot.messages.states import STATE_TYPES, static_topic
from ki_robot.messages.video import VIDEO_MESSAGES

IMAGES = {
    'compressed': ('sensor_msgs/msg/CompressedImage',),
    'raw': ('sensor_msgs/msg/Image',),
    **{transport: (name,) for transport, name in VIDEO_MESSAGES.items()},
}
MARKER, INSTRUCTION = 'ki_msgs/msg/EpisodeMarker', 'ki_msgs/msg/Instruction'


@dataclass(frozen=True)
class BagTopics:
    """By topic of the bag: the streams it feeds, the output it commanded, the type of a text that tells what to do.

    `still`: of tf_static, the streams whose poses stand on it.
    """

    streams: dict[str, tuple[str, ...]]
    outputs: dict[str, Output]
    texts: dict[str, str]
    still: dict[str, tuple[str, ...]]


def match_topics(bag: Bag, contract: Contract, remap: Mapping[str, str]) -> BagTopics:
    """Finds what a robot's node would hear in a bag.

    Args:
        bag: The recording.
        contract: The robot; its topics may carry any namespace in the bag.
        remap: Topic of the contract -> topic of the bag.

    Raises:
        NodeError: a required camera or a state stream has no topic of its type, or a name could mean several.
    """
    streams: dict[str, tuple[str, ...]] = {}
    outputs: dict[str, Output] = {}
    still: dict[str, tuple[str, ...]] = {}
    for camera in contract.cameras:
        topic = _find(bag, camera.topic, IMAGES[camera.transport], remap)
        if topic:
            streams[topic] = (camera.name,)
        elif camera.required:
            raise _missing(bag, contract, camera.name, camera.topic, IMAGES[camera.transport][0], remap)
    for stream in contract.state_streams:
        topic = _find(bag, stream.topic, (STATE_TYPES[stream.type],), remap)
        if not topic:
            raise _missing(bag, contract, stream.name, stream.topic, STATE_TYPES[stream.type], remap)
        streams[topic] = (*streams.get(topic, ()), stream.name)
        beside = static_topic(stream) and _find(bag, static_topic(stream), (STATE_TYPES[stream.type],), remap)
        if beside:
            still[beside] = (*still.get(beside, ()), stream.name)
    for output in contract.robot.outputs:
        topic = _find(bag, output.topic, CONTROLLER_KINDS[output.kind].messages, remap)
        if topic:
            outputs[topic] = output
    # The topic that the node listens to, and the task of an episode; other texts are somebody else's.
    texts = {
        topic.name: topic.type
        for topic in bag.topics.values()
        if topic.type == MARKER or (topic.type == INSTRUCTION and topic.name.endswith('/instruction'))
    }
    return BagTopics(streams, outputs, texts, still)


def _find(bag: Bag, wanted: str, types: tuple[str, ...], remap: Mapping[str, str]) -> str | None:
    match = find_topic(bag, wanted, types, remap)
    if match.doubt:
        raise NodeError(f'{bag.path}: {match.doubt}.')
    return match.topic.name if match.topic else None


def _missing(bag: Bag, contract: Contract, name: str, topic: str, kind: str, remap: Mapping[str, str]) -> NodeError:
    known = ', '.join(f'{each.name} ({each.type})' for each in bag.topics.values())
    return NodeError(
        f'{bag.path} has no topic {remap.get(topic, topic)} of type {kind}, which {name} of robot {contract.name} '
        f'needs; it has {known}. Record it, or say --remap {topic}:=NAME.'
    )
