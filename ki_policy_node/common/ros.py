"""What nodes and commands share about ROS 2: the transport profile, message classes by name, QoS that fits, files."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import re
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from ki_common.share import share_file, share_folders
from ki_policy_node.common.stop_request import StopRequest, held_signals
from ki_policy_node.errors import NodeError

DDS_PROFILES = ('loopback', 'lan', 'none')
INTERFACE = re.compile(r'([a-z]\w*)/(msg|srv|action)/([A-Z]\w*)')
DOMAINS = 232  # the highest; above it there are no ports


def domain_id() -> int | None:
    """The ROS domain that ROS_DOMAIN_ID names; None when it is not set.

    Raises:
        NodeError: it names none. Fast DDS ends the process without a word of ours when it is too high.
    """
    text = os.environ.get('ROS_DOMAIN_ID', '')
    if text and not (text.isdecimal() and int(text) <= DOMAINS):
        raise NodeError(f'ROS_DOMAIN_ID is {text!r}; write a whole number from 0 to {DOMAINS}, or unset it.')
    return int(text) if text else None


def use_dds_profile(profile: str = '', environment: MutableMapping[str, str] | None = None) -> str:
    """Chooses how processes reach each other, for this process and its children; call it before rclpy.init.

    What the environment already says wins. `profile` is loopback, lan or none; without one, KI_DDS decides,
    and without that loopback.

    Returns:
        The profile in force: a name, or the path that was set from outside.
    """
    environment = os.environ if environment is None else environment
    preset = environment.get('FASTRTPS_DEFAULT_PROFILES_FILE') or environment.get('FASTDDS_DEFAULT_PROFILES_FILE')
    if preset:
        return preset
    profile = profile or environment.get('KI_DDS', 'loopback')
    if profile not in DDS_PROFILES:
        raise NodeError(f'Unknown DDS profile {profile!r} (KI_DDS or dds:). Choose one of: {", ".join(DDS_PROFILES)}.')
    if profile == 'none':
        return profile
    path = str(share_file('ki_policy_node', f'config/dds/{profile}.xml'))
    # Fast DDS 2 (up to Jazzy) reads the first name, Fast DDS 3 (from Kilted on) the second.
    environment['FASTRTPS_DEFAULT_PROFILES_FILE'] = environment['FASTDDS_DEFAULT_PROFILES_FILE'] = path
    environment.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST' if profile == 'loopback' else 'SUBNET')
    if profile == 'loopback' and environment.get('ROS_DISTRO') == 'humble':
        environment.setdefault('ROS_LOCALHOST_ONLY', '1')
    return profile


def use_own_dds_profile() -> str:
    """`use_dds_profile` for a node that is started by its own name, by `ros2 launch` or by hand.

    A sourced ROS 2 keeps its ways there, unless KI_DDS asks for others: a robot of several machines must not be
    narrowed to one of them without a word.
    """
    sourced = 'ROS_DISTRO' in os.environ and 'KI_DDS' not in os.environ
    return use_dds_profile('none' if sourced else '')


def security_arguments(node: str, arguments: list[str], environment: MutableMapping[str, str]) -> list[str]:
    """What a node is started with besides, so that it finds its enclave in the keystore.

    KI_SECURITY=enforce asks ROS 2 to refuse everybody without a key; it sets what `ros2` calls ROS_SECURITY_ENABLE and
    ROS_SECURITY_STRATEGY. An enclave that is named already stays.

    Raises:
        NodeError: KI_SECURITY is something else, or no keystore is named.
    """
    wanted = environment.get('KI_SECURITY', '')
    if wanted not in ('', 'enforce'):
        raise NodeError(f'KI_SECURITY is {wanted!r}; write enforce, or unset it.')
    if wanted:
        if not environment.get('ROS_SECURITY_KEYSTORE'):
            raise NodeError('KI_SECURITY is enforce, and ROS_SECURITY_KEYSTORE names no keystore: ki security init')
        environment['ROS_SECURITY_ENABLE'], environment['ROS_SECURITY_STRATEGY'] = 'true', 'Enforce'
    named = '--enclave' in arguments or '-e' in arguments or environment.get('ROS_SECURITY_ENCLAVE_OVERRIDE')
    if environment.get('ROS_SECURITY_ENABLE') != 'true' or named:
        return []
    spaces = [each.removeprefix('__ns:=') for each in arguments if each.startswith('__ns:=')]
    return ['--ros-args', '--enclave', '/'.join(['', *filter(None, [(spaces or [''])[-1].strip('/')]), node])]


def message_class(name: str) -> Any:
    """The class of an interface named as ROS names it: 'sensor_msgs/msg/Image', 'x_msgs/action/Y_Goal'.

    A name may come from the network. Only a package that has installed this interface is imported.

    Raises:
        NodeError: the package or the type is not installed here.
    """
    match = INTERFACE.fullmatch(name)
    if match is None:
        raise NodeError(f'The message type {name[:100]!r} is no name of an interface; write PACKAGE/msg/TYPE.')
    package, kind, type_name = match.groups()
    definition = f'{kind}/{type_name.partition("_")[0]}'
    if not any(
        Path(folder, f'{definition}.{end}').is_file() for folder in share_folders(package) for end in (kind, 'idl')
    ):
        raise NodeError(f'The message type {name} is not installed here: install or build {package}.')
    try:
        return functools.reduce(getattr, type_name.split('_'), importlib.import_module(f'{package}.{kind}'))
    except (ImportError, AttributeError, ValueError) as error:
        raise NodeError(f'The message type {name} is not installed here: install or build {package}.') from error


def checked_topic(name: str) -> str:
    """A topic as someone typed it, which rcl would refuse only once a node uses it.

    Raises:
        NodeError: it is no name of a topic.
    """
    from rclpy.exceptions import NameValidationException
    from rclpy.validate_topic_name import validate_topic_name

    try:
        validate_topic_name(name)
    except NameValidationException as error:
        why = str(error).splitlines()[0].partition(': ')[2].rstrip(':')
        raise NodeError(f'Topic {name!r} is no name: {why}.') from error
    return name


def start() -> None:
    """Starts ROS for a command; Ctrl-C arrives as KeyboardInterrupt there, not as a closed context below it.

    rclpy's own handler of signals is left out for another reason, too: where SIGTERM comes while `rclpy.spin` waits,
    it now and then goes unnoticed for ever. End a process by `spin_until_signal`.

    Raises:
        NodeError: the environment names a domain or a profile that is none, or what else ROS refuses.
    """
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    domain_id()
    use_dds_profile()
    try:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        raise NodeError(f'ROS 2 does not start: {error}') from error


@contextlib.contextmanager
def node(name: str, **options: Any) -> Iterator[Any]:
    """A node for the length of a `with` block, with ROS started before and shut down after."""
    import rclpy

    start()
    try:
        made = rclpy.create_node(name, **options)
        try:
            yield made
        finally:
            made.destroy_node()
    finally:
        rclpy.try_shutdown()


def spin_once(node: Any, timeout_s: float) -> None:
    """Does one piece of a node's work, whole: a signal that comes meanwhile counts afterwards, see `held_signals`."""
    import rclpy

    with held_signals():
        rclpy.spin_once(node, timeout_sec=timeout_s)


def spin_until(node: Any, condition: Any, timeout_s: float) -> bool:
    """Spins until `condition()` holds or the time is over; says whether it held."""
    end = time.monotonic() + timeout_s
    while not condition():
        left = end - time.monotonic()
        if left <= 0:
            return False
        spin_once(node, min(left, 0.1))
    return True


def matching_qos(node: Any, topic: str, depth: int = 100) -> Any:
    """A subscription QoS that hears every publisher of a topic: the weakest that any of them offers.

    A reliable subscription hears nothing from a best-effort publisher, and says nothing about it.
    """
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    offers = [info.qos_profile for info in node.get_publishers_info_by_topic(topic)]
    reliable = all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
    latched = bool(offers) and all(offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def waiting(subscription: Any, most: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What a subscription has heard and no executor has taken yet, with what is known of it; `most` messages."""
    for _ in range(most):
        with subscription.handle:
            heard = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if heard is None:
            return
        yield heard


def spin_until_signal(node: Any, seconds: float = math.inf) -> None:
    """Spins a node until SIGINT, SIGTERM or the end of the time, and leaves ROS running for last words.

    A second signal does not cut those short, see `StopRequest`.
    """
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop = StopRequest(executor.wake)
    try:
        end = time.monotonic() + seconds
        while not stop.is_set() and rclpy.ok() and time.monotonic() < end:
            executor.spin_once(timeout_sec=min(0.5, max(end - time.monotonic(), 0.0)))
    except ExternalShutdownException:
        pass
    finally:
        executor.remove_node(node)
        executor.shutdown()
        stop.release()


def offered_qos(text: str, depth: int = 10) -> Any:
    """A publisher QoS that does what a bag says was offered: the strongest of the offers; reliable without any.

    Args:
        text: YAML list of offers, policies as numbers (up to Jazzy) or names (from Kilted on).
        depth: Messages kept for a slow subscriber.
    """
    import yaml
    from rclpy.qos import DurabilityPolicy, QoSProfile

    offers = (yaml.safe_load(text) if text else None) or []
    latched = any(str(offer.get('durability')) in {'1', 'transient_local'} for offer in offers)
    qos = QoSProfile(depth=max([depth, *(int(offer.get('depth', 0)) for offer in offers)]))
    if latched:
        qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
    return qos
