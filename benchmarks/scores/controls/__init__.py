"""Controls: other people's code, unchanged, trained on the data on which ours is trained."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.speed.peers import Peer

EPISODES = 100  # of the last evaluation, as in our scripts; their starts have the seeds 0 to 99


@dataclass
class Order:
    """What is asked of a control: one seed on one dataset."""

    control: str  # a name in CONTROLS
    checkout: str  # folder of their repository
    dataset: str
    namesake: str  # the D4RL dataset whose published settings are used
    seed: int
    num_updates: int
    eval_every: int
    decay_updates: int  # length of their learning rate's schedule, if they have one

    @property
    def folder(self) -> Path:
        return Path(self.checkout)


@dataclass
class Control:
    """A program of other people that trains a policy on a D4RL dataset."""

    peer: Peer  # repository, commit and files, and the script of ours that it is beside
    file: str  # the program, from the root of the checkout
    # (Order) -> (file, words) of their command lines; the last one trains what is evaluated
    commands: Callable[[Order], Iterator[tuple[str, list[str]]]]
    settings: Callable[[Order], str]  # where the published settings stand, in words
    args: dict = field(default_factory=dict)  # what our script calls its choices
    changes: dict = field(default_factory=dict)  # options of theirs that differ from their settings
    scheduled: bool = False  # does a learning rate decay?
    packages: tuple[str, ...] = ()  # what it imports that is not in requirements.txt
    eval_episodes: int = EPISODES  # of all evaluations but the last
    # Where their program has no option for the number of episodes: a function that plays EPISODES
    # after the training, by what their program has left: (its global names) -> None
    evaluate: Callable[[dict], None] | None = None

    def version(self, checkout: Path) -> str:
        """Return the whole commit, and which files differ from it."""
        return self.peer.commit + self.peer.version(checkout)[7:]
