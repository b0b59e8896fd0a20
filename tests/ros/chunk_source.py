"""A stand-in for the policy: chunks of equal steps, ten a second."""

from array import array

from nora_msgs.msg import ActionChunk
from rclpy.node import Node

from nora_core.ros import convert
from nora_core.ros.managed_node import parameter, run

NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


class ChunkSource(Node):
    """Steps of `y` m; with `is_frozen` every chunk has the image stamp of the first."""

    def __init__(self) -> None:
        super().__init__("chunk_source")
        self.y = parameter(self, "y", 0.0, "Step along y, m.")
        self.num_steps = parameter(self, "num_steps", 5, "Steps per chunk.")
        self.is_frozen = parameter(self, "is_frozen", False, "Repeat the first stamp.")
        self.stamp_ns = 0
        self.publisher = self.create_publisher(ActionChunk, "policy/action_chunk", 1)
        self.create_timer(0.1, self.publish)

    def publish(self) -> None:
        if not (self.is_frozen and self.stamp_ns):
            self.stamp_ns = self.get_clock().now().nanoseconds
        values = [0.0, self.y, 0.0, 0.0, 0.0, 0.0, 1.0] * self.num_steps
        self.publisher.publish(
            ActionChunk(
                header=convert.header(self.stamp_ns, "base_link"),
                action_names=NAMES,
                step_period=0.2,
                num_steps=self.num_steps,
                actions=array("d", values),
            )
        )


if __name__ == "__main__":
    run(ChunkSource)
