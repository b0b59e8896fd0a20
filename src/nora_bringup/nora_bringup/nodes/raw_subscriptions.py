"""Subscriptions to the topics of the record list, which receive serialised messages."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rclpy.type_hash import TypeHash
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)

from nora_core.bags.definitions import NS_PER_S, Definitions
from nora_core.bags.writer import Topic

DEPTH = 50
# Publishers without a type hash (micro-ROS, distributions before Iron): our definition is used.
NO_HASHES = {str(TypeHash()), str(TypeHash(version=1))}


@dataclass(frozen=True, slots=True)
class _Followed:
    topic: Topic
    subscription: Subscription


class RawSubscriptions:
    """Follows topics whose type and QoS are only known once somebody publishes them.

    Args:
        node: the node that subscribes.
        names: full topic names.
        definitions: every type must be known there, and be the publisher's.
        on_message: gets the topic and the serialised message.

    Attributes:
        unpublished: names that nobody publishes, in order.
        problems: by name, why a published topic is not followed.
    """

    def __init__(
        self,
        node: Node,
        *,
        names: tuple[str, ...],
        definitions: Definitions,
        on_message: Callable[[Topic, bytes], None],
    ) -> None:
        self.unpublished: tuple[str, ...] = names
        self.problems: dict[str, str] = {}
        self._node, self._names = node, names
        self._definitions, self._on_message = definitions, on_message
        self._followed: dict[str, _Followed] = {}

    def refresh(self) -> None:
        """Follow new publishers and changed types; call it periodically."""
        publishers = {name: self._node.get_publishers_info_by_topic(name) for name in self._names}
        self.unpublished = tuple(name for name, found in publishers.items() if not found)
        for name, found in publishers.items():
            if not found:
                continue
            try:
                self._follow(_topic(name, found, self._definitions))
            except (ValueError, ImportError) as error:
                self.problems[name] = str(error)
            else:
                self.problems.pop(name, None)

    def close(self) -> None:
        for followed in self._followed.values():
            self._node.destroy_subscription(followed.subscription)
        self._followed.clear()

    def _follow(self, topic: Topic) -> None:
        followed = self._followed.get(topic.name)
        if followed is not None:
            if followed.topic == topic:
                return
            self._node.destroy_subscription(followed.subscription)
        subscription = self._node.create_subscription(
            _message_class(topic.type_name),
            topic.name,
            functools.partial(self._on_message, topic),
            _compatible(topic.qos),
            raw=True,
        )
        self._followed[topic.name] = _Followed(topic, subscription)


def _topic(name: str, publishers: list[TopicEndpointInfo], definitions: Definitions) -> Topic:
    """Raises `ValueError` when the publishers disagree with each other, or with us."""
    types = {info.topic_type for info in publishers}
    hashes = {str(info.topic_type_hash) for info in publishers} - NO_HASHES
    if len(types) > 1 or len(hashes) > 1:
        found = sorted({(info.topic_type, str(info.topic_type_hash)) for info in publishers})
        raise ValueError(f"expected publishers of one type, got {found}")
    (type_name,) = types
    ours = definitions.type_hash(type_name)
    for type_hash in hashes - {ours}:
        raise ValueError(f"type {type_name}: expected hash {ours}, the publisher has {type_hash}")
    profiles = {bag_qos(info.qos_profile) for info in publishers}
    return Topic(name, type_name, tuple(sorted(profiles, key=str)))


def _compatible(offers: tuple[Qos, ...]) -> QoSProfile:
    """The strictest profile that every publisher offers."""
    is_reliable = all(offer.reliability is QosReliability.RELIABLE for offer in offers)
    is_latched = all(offer.durability is QosDurability.TRANSIENT_LOCAL for offer in offers)
    return QoSProfile(
        depth=DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if is_reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE,
    )


def bag_qos(profile: QoSProfile) -> Qos:
    """Convert to the form of bag metadata; both enumerations have the values of rmw."""
    return Qos(
        QosHistory(int(profile.history)),
        int(profile.depth),
        QosReliability(int(profile.reliability)),
        QosDurability(int(profile.durability)),
        QosTime(*divmod(profile.deadline.nanoseconds, NS_PER_S)),
        QosTime(*divmod(profile.lifespan.nanoseconds, NS_PER_S)),
        QosLiveliness(int(profile.liveliness)),
        QosTime(*divmod(profile.liveliness_lease_duration.nanoseconds, NS_PER_S)),
        bool(profile.avoid_ros_namespace_conventions),
    )


def _message_class(type_name: str) -> type:
    package, kind, name = type_name.split("/")
    found: type = getattr(importlib.import_module(f"{package}.{kind}"), name)
    return found
