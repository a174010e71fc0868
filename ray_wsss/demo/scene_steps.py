"""The demo's first steps, apart from the others: they need no torch, so the first picture is there sooner."""

from ray_wsss.demo.pictures import save_first_look
from ray_wsss.demo.scenes import make_held_out_scenes, make_training_scenes
from ray_wsss.demo.settings import SceneDemo


def train(demo: SceneDemo) -> None:
    """The scenes to train on."""
    make_training_scenes(demo.out, demo.seed, demo.train_scenes)


def held_out(demo: SceneDemo) -> None:
    """The scenes to measure on, and a first look at them."""
    make_held_out_scenes(demo.out, demo.seed, demo.train_scenes, demo.held_out_scenes)
    save_first_look(demo)
