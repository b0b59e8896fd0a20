"""The small untrained checkpoint of a data set."""

import tiny_training

from nora_core.embodiment import Embodiment
from nora_policy.policy import Policy
from nora_training.sft import small


def test_a_small_checkpoint_answers_for_the_robot_of_its_data_set(tmp_path):
    tiny_training.write_dataset(tmp_path / "data")
    model = small.write(small.Settings(tmp_path / "data", tmp_path / "out", seed=1))
    assert model.config.image_size == tiny_training.SIZE
    assert model.config.num_action_tokens == small.NUM_ACTION_TOKENS
    policy = Policy.load(tmp_path / "out", Embodiment.load(tiny_training.CONFIG), "cpu")
    assert policy.head == "flow"
