"""Small worlds of cells, and data of walkers in them."""

import numpy as np

# A map is read from above: wall #, start S, goal G, river w, key k. The field, a row of text for
# every row of cells, has room for two lanes.
FIELD = """
    ##################
    #...GG...........#
    #...GG...........#
    #................#
    #................#
    #................#
    #................#
    #................#
    #SS..............#
    #SS..............#
    ##################"""
ROOMS = """
    #############
    #.....#.....#
    #.....#.G...#
    #...........#
    #.....#.....#
    #wwwww#.....#
    ##.########.#
    #.....#.....#
    #.....#..k..#
    #.....#.....#
    #SS...#.....#
    #SS.........#
    #############"""
MAPS = {
    "field": FIELD,
    "four-room": ROOMS.replace("w", ".").replace("k", "."),
    "four-room-river": ROOMS.replace("k", "."),
    "four-room-key": ROOMS.replace("w", "."),
}
STEP = 0.99  # cells: less than a wall is thick, so that none is jumped
DROWNED = -100.0  # what never arriving costs at gamma 0.99, too; were it less, drowning would pay
# The corners of the lanes, each by its lower left cell. In "crossing" the lane from the start and
# the lane to the goal share four cells, those of (11, 4); in "parallel" they only pass each other.
TO_GOAL = [(14, 4), (6, 4), (6, 2), (3, 2), (3, 7)]
LANES = {
    "crossing": [[(0, 0), (11, 0), (11, 7)], TO_GOAL],
    "parallel": [[(0, 0), (11, 0), (11, 1)], TO_GOAL],
}


class World:
    """A map of cells 1 wide.

    States are (n, 3): x and y from the middle of the map, and whether the key is held. Observations
    are the first obs_dim of these: the field has no key. Actions (n, 2) are moves in cells.
    """

    def __init__(self, name: str):
        self.name = name
        rows = [list(row) for row in MAPS[name].split()]
        self.map = np.array(rows[::-1])  # [y, x], y upwards
        self.middle = (np.array(self.map.shape[::-1]) - 1) / 2
        self.whole_cells = name == "field"
        self.obs_dim = 2 if self.whole_cells else 3
        self.max_steps = 60 if self.whole_cells else 100
        self.has_key = "k" in self.map

    def tiles(self, states: np.ndarray) -> np.ndarray:
        """Return the letter of the cell that holds each state: (n,)."""
        x, y = np.floor(states[:, :2] + self.middle + 0.5).astype(int).T
        return self.map[y, x]

    def draw(self, rng, count: int, letters: str) -> np.ndarray:
        """Draw states without the key, uniformly from these tiles: (count, 3)."""
        cells = np.argwhere(np.isin(self.map, list(letters)))[:, ::-1] - self.middle
        xy = cells[rng.integers(len(cells), size=count)]
        spread = 0.0 if self.whole_cells else 0.5
        xy = xy + rng.uniform(-spread, spread, (count, 2))
        return np.column_stack([xy, np.zeros(count)])

    def at_goal(self, states: np.ndarray) -> np.ndarray:
        """Are the states at the goal, and with the key if there is one? (n,)"""
        at_goal = self.tiles(states) == "G"
        return at_goal & (states[:, 2] == 1) if self.has_key else at_goal

    def advance(self, states: np.ndarray, actions: np.ndarray) -> tuple:
        """Let n walkers take a step: next states (n, 3), rewards, who arrives, who drowns (n,).

        A step costs 1 except at the goal. It goes along x, then along y, unless into a wall.
        """
        rewards = np.where(self.at_goal(states), 0.0, -1.0)
        move = np.clip(actions, -1, 1)
        move = np.rint(move) if self.whole_cells else STEP * move
        states = states.copy()
        for axis in (0, 1):
            there = states.copy()
            there[:, axis] += move[:, axis]
            free = self.tiles(there) != "#"
            states[free] = there[free]
        states[self.tiles(states) == "k", 2] = 1
        drowns = self.tiles(states) == "w"
        rewards[drowns] = DROWNED
        return states, rewards, self.at_goal(states), drowns


class Recorder:
    """The transitions of walkers, in the columns of a dataset."""

    def __init__(self, world: World):
        self.world = world
        self.steps = []

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple:
        """Let all take a step. Return next states (n, 3), and whose episode ends (n,)."""
        world = self.world
        actions = np.clip(actions, -1, 1)
        next_states, rewards, arrives, drowns = world.advance(states, actions)
        # In the field walkers stay at the goal at no cost: the value of a terminal state is never
        # learned, and a guide that climbs it might stop before the goal.
        ends = np.zeros(len(states), bool) if world.whole_cells else arrives | drowns
        columns = {
            "observations": states[:, : world.obs_dim],
            "actions": actions,
            "rewards": rewards,
            "terminals": ends.astype(float),
            "next_observations": next_states[:, : world.obs_dim],
            "next_valid": np.ones(len(states)),
        }
        self.steps.append(columns)
        return next_states, ends

    def data(self) -> dict:
        """Return the columns of all steps, one after the other."""
        keys = self.steps[0]
        return {key: np.concatenate([step[key] for step in self.steps]) for key in keys}


def walk_lanes(world: World, lanes: list, rng, walkers: int = 200, wait: int = 10) -> dict:
    """Return the data of walkers on each lane, who then stay at its end for some steps.

    A lane is two cells wide. Walkers go forward by one cell a step and change sides at random:
    where each state has but one next state, log b in Eq. 4 would forbid every other one.
    """
    recorder = Recorder(world)
    for corners in lanes:
        line = cells_between(corners)
        line += [line[-1]] * wait
        side = rng.integers(2, size=(walkers, 2))
        states = np.column_stack([line[0] + side + 1 - world.middle, np.zeros(walkers)])
        for here, there in zip(line[:-1], line[1:], strict=True):
            # Along the lane the place in it stays, so that every walker moves on.
            side = np.where(here == there, rng.integers(2, size=side.shape), side)
            actions = there + side + 1 - world.middle - states[:, :2]
            actions = actions + rng.uniform(-0.4, 0.4, actions.shape)  # rounds to the same move
            states, _ = recorder.step(states, actions)
    return recorder.data()


def cells_between(corners: list) -> list[np.ndarray]:
    """Return all cells on the way from corner to corner."""
    line = [np.array(corners[0])]
    for corner in corners[1:]:
        while (line[-1] != corner).any():
            line.append(line[-1] + np.sign(corner - line[-1]))
    return line


def wander(world: World, rng, walkers: int = 2500, steps: int = 12, keep: float = 0.8) -> dict:
    """Return the data of walkers who know neither goal nor river nor key.

    They start anywhere, keep their heading with probability `keep`, and start anew when an episode
    ends. If there is a key, half of them hold it from the beginning, else none would bring it to
    the goal.
    """
    places = "".join(set(world.map.flat) - set("#Gw"))

    def start(count: int) -> np.ndarray:
        states = world.draw(rng, count, places)
        holds = rng.integers(2, size=count)
        if world.has_key:
            states[:, 2] = holds
        return states

    recorder = Recorder(world)
    states = start(walkers)
    heading = np.zeros((walkers, 2))
    for step in range(steps):
        new_heading = rng.normal(size=(walkers, 2))
        new_heading /= np.abs(new_heading).max(axis=1, keepdims=True)
        kept = rng.random((walkers, 1)) < (keep if step > 0 else 0)
        heading = np.where(kept, heading, new_heading)
        states, ends = recorder.step(states, heading + rng.normal(0, 0.3, (walkers, 2)))
        states = states.copy()
        states[ends] = start(ends.sum())
    return recorder.data()
