"""Read one episode from one bag: the instruction, the actions and the images.

Legend: N steps, M messages, A action dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from rosbags.interfaces import Connection

from nora_core.embodiment import Camera, Embodiment
from nora_core.observation import NS_PER_S, NoObservation, ObservationBuffer, frame_from_image
from nora_core.types import Float64, Frame, Observation, Outcome, Rejection
from nora_training.data.alignment import Int64, moving
from nora_training.data.bag_reader import Bag, Message, check_clock
from nora_training.data.tool_motion import Choice, Messages, Motion, Source, motion_topics, motions

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
STRING = "std_msgs/msg/String"
OUTCOME = "nora_msgs/msg/TaskOutcome"
BEFORE, AFTER = -(2**62), 2**62
MAX_GAP_PERIODS = 2  # between measured poses: what the arm did meanwhile is not known


@dataclass(frozen=True, slots=True)
class Episode:
    """A demonstration without no-op steps; its images are still in the bag.

    `stamps_N`: start of each step, ns. `actions_NA`: what was done from then on for one step
    period, as in `ActionChunk`. `measured_N6`: how the tool really moved meanwhile, and
    `positions_N3`: where it was at the start, m, in the base frame; NaN where the bag does not
    tell, as in a gap of more than two periods. `source`: the messages that the actions are from.
    `num_periods`: steps before the filter.
    """

    instruction: str
    outcome: Outcome
    source: Source
    num_periods: int
    stamps_N: Int64
    actions_NA: Float64
    measured_N6: Float64
    positions_N3: Float64


@dataclass(frozen=True, slots=True)
class _Task:
    """The instruction between `begin_ns` and `end_ns`, and its outcome."""

    instruction: str
    outcome: Outcome
    begin_ns: int = BEFORE
    end_ns: int = AFTER


def read_episode(bag: Bag, embodiment: Embodiment, source: Choice = "auto") -> Episode:
    """Read the steps of a bag at the period of `embodiment`.

    Args:
        bag: an open one.
        embodiment: names topics, period and driver.
        source: of the actions; auto: the first of `Source` that the bag has.

    Raises:
        ValueError: the bag cannot be used; the reason fits into one line.
    """
    _check_robot(bag, embodiment)
    topics = {"instruction": STRING, "task_outcome": OUTCOME, **motion_topics(embodiment)}
    read = bag.read(topics)
    task = _task(bag.labels, read)
    found = motions(read, embodiment, source)
    wanted = [motion for motion in found if source in ("auto", motion.source)]
    if not wanted:
        available = [motion.source for motion in found]
        raise ValueError(f"expected actions from {source}, available: {available or 'none'}")
    return _episode(task, wanted[0], found, embodiment.action.step_period_s)


def _episode(task: _Task, motion: Motion, found: list[Motion], period_s: float) -> Episode:
    period_ns = round(period_s * NS_PER_S)
    begin_ns = max(task.begin_ns, int(motion.path.stamps_M[0]))
    end_ns = min(task.end_ns, int(motion.path.stamps_M[-1]))
    num_periods = round((end_ns - begin_ns) / period_ns)
    if num_periods < 1:
        raise ValueError("expected motion for a step period or more while instructed, got less")
    grid = begin_ns + period_ns * np.arange(num_periods + 1)
    max_gap_ns = MAX_GAP_PERIODS * period_ns
    if motion.source != "command" and not motion.path.is_known(grid, max_gap_ns).all():
        gap_s, limit_s = np.array([np.diff(motion.path.stamps_M).max(), max_gap_ns]) / NS_PER_S
        raise ValueError(f"{motion.source}: expected gaps up to {limit_s:g} s, got {gap_s:g} s")
    actions_NA = motion.steps(grid)
    keep = moving(actions_NA)
    if not keep.any():
        raise ValueError(f"motion is missing in {num_periods} steps")
    measured_N6, positions_N3 = (np.full((num_periods, dim), np.nan) for dim in (6, 3))
    if measured := [other for other in found if other.source != "command"]:
        path = measured[0].path
        is_known_N = path.is_known(grid, max_gap_ns)
        measured_N6[is_known_N] = path.steps(grid)[is_known_N]
        positions_N3[is_known_N] = path.positions(grid[:-1])[is_known_N]
    return Episode(
        instruction=task.instruction,
        outcome=task.outcome,
        source=motion.source,
        num_periods=num_periods,
        stamps_N=grid[:-1][keep],
        actions_NA=actions_NA[keep],
        measured_N6=measured_N6[keep],
        positions_N3=positions_N3[keep],
    )


def observations(
    bag: Bag, episode: Episode, embodiment: Embodiment
) -> Iterator[Observation | Rejection[NoObservation]]:
    """Yield the policy's observation at the start of each step, or why there is none.

    The bag's images go through the `ObservationBuffer` of the policy node, in the order they came.

    Raises:
        ValueError: an image cannot be used; the reason fits into one line.
    """
    buffer = ObservationBuffer(embodiment.cameras)
    newest: dict[str, Message] = {}  # of each topic; what an image replaces is never decoded

    def snapshot(now_ns: int) -> Observation | Rejection[NoObservation]:
        for camera in embodiment.cameras:
            for image in newest.values():
                if bag.is_named(image.topic, camera.topic):
                    frame = frame_from_image(image.msg, camera.encoding)
                elif bag.is_named(image.topic, _compressed(camera)):
                    frame = _decode(image)
                else:
                    continue
                buffer.put(camera.name, frame, image.log_ns)
        newest.clear()
        return buffer.snapshot(now_ns, episode.instruction)

    waiting = iter(episode.stamps_N.tolist())
    now_ns = next(waiting, AFTER)
    for image in _images(bag, embodiment):
        while now_ns < image.log_ns:
            yield snapshot(now_ns)
            now_ns = next(waiting, AFTER)
        if image.topic not in newest or image.stamp_ns > newest[image.topic].stamp_ns:
            newest[image.topic] = image
    while now_ns < AFTER:
        yield snapshot(now_ns)
        now_ns = next(waiting, AFTER)


def _images(bag: Bag, embodiment: Embodiment) -> Iterator[Message]:
    """Images of all cameras as they were logged, of clocks that do not go backwards."""
    connections = {
        connection.id: connection
        for camera in embodiment.cameras
        for connection in _connections(bag, camera)
    }
    newest_ns: dict[str, int] = {}
    for image in bag.messages(list(connections.values())):
        stamp_ns = image.stamp_ns
        stamps = np.array([newest_ns.get(image.topic, stamp_ns - 1), stamp_ns])
        check_clock(image.topic, stamps, np.array([stamps[0], image.log_ns]))
        newest_ns[image.topic] = stamp_ns
        yield image


def _connections(bag: Bag, camera: Camera) -> list[Connection]:
    """Raw images of `camera`, or else compressed ones; in a bag with both the raw ones count."""
    raw = bag.connections(camera.topic, IMAGE)
    return raw or bag.connections(_compressed(camera), COMPRESSED)


def _compressed(camera: Camera) -> str:
    """The topic of the compressed images, as image_transport names it."""
    return f"{camera.topic}/compressed"


def _decode(image: Message) -> Frame:
    """Decode JPEG, PNG or any other format that OpenCV reads.

    Raises:
        ValueError: OpenCV cannot decode it.
    """
    data = np.frombuffer(image.msg.data, np.uint8)
    try:
        bgr_HW3 = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error:  # a size that no image has
        bgr_HW3 = None
    if bgr_HW3 is None:
        raise ValueError(
            f"{image.topic}: expected an image, got {data.size} bytes, {image.msg.format!r}, "
            "that cannot be decoded"
        )
    return Frame(np.asarray(bgr_HW3, np.uint8)[..., ::-1], image.stamp_ns)


def _check_robot(bag: Bag, embodiment: Embodiment) -> None:
    name = bag.labels.get("embodiment", embodiment.name)
    if name != embodiment.name:
        raise ValueError(f"embodiment: expected {embodiment.name}, got {name}")
    for camera in embodiment.cameras:
        if not _connections(bag, camera):
            raise ValueError(f"{camera.topic}: images are missing")


def _task(labels: Mapping[str, str], read: Messages) -> _Task:
    """Read the task from the labels, and from the topics where the labels lack it."""
    outcome = _outcome(labels, read)
    if instruction := labels.get("instruction", "").strip():
        return _Task(instruction, outcome)
    texts = [message.msg.data.strip() for message in read["instruction"]]
    distinct = sorted(set(texts) - {""})
    if len(distinct) != 1:
        raise ValueError(f"instruction: expected one in the labels or the topic, got {distinct}")
    first = texts.index(distinct[0])
    stops = [m.log_ns for m in read["instruction"][first:] if not m.msg.data.strip()]
    return _Task(distinct[0], outcome, read["instruction"][first].log_ns, (*stops, AFTER)[0])


def _outcome(labels: Mapping[str, str], read: Messages) -> Outcome:
    said = labels.get("outcome", "").strip().upper()
    if said in ("", Outcome.UNKNOWN.name) and read["task_outcome"]:
        return Outcome(read["task_outcome"][-1].msg.outcome)
    if said and said not in Outcome.__members__:
        raise ValueError(f"outcome: expected one of {list(Outcome.__members__)}, got {said!r}")
    return Outcome[said] if said else Outcome.UNKNOWN
