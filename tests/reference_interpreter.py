"""Runs a bundle by its documents alone: what a runtime in another language has to do, in a few lines.

It shares nothing with ours but the files. Instead of finding out beforehand what a configuration runs, it computes a
tensor when somebody asks for it.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime


class Interpreter:
    """A bundle. ``ran`` lists the pieces that the last call has run."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.configurations = json.loads((folder / "configurations.json").read_text())["named"]
        self.pieces = {piece["id"]: piece for piece in self.manifest["pieces"]}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.engines = {id: onnxruntime.InferenceSession(folder / p["file"], options) for id, p in self.pieces.items()}
        self.ran: list[str] = []

    def __call__(self, sample: dict, exits: dict, gates: dict, cap: tuple[str, str] | None = None) -> tuple:
        """Index of the exit, logits and score of one sample, whose inputs are (1, ...) arrays by name.

        Args:
            cap: exit and head at which a sample leaves that gets there.
        """
        self.ran = []
        known: dict[str, Callable[[], np.ndarray]] = {}
        places = [exit["id"] for exit in self.manifest["exits"]]
        for op in self.manifest["program"]:
            if op["op"] == "feed":
                known[op["input"]] = lambda name=op["input"]: sample[name]
            elif op["op"] == "run":
                known.update(self._later(op["piece"], known))
            elif op["op"] == "choose":
                known.update(self._choice(op, gates.get(op["gate"], op["cut_points"]), known))
            else:
                here, on = (op["exit"], op["head"]), exits.get(op["exit"])
                always = op["always"] or here == cap
                if always or (on is not None and on["head"] == op["head"]):
                    score = known[self.manifest["score"]]()[0]
                    if always or score > np.float32(on["threshold"]):
                        return places.index(op["exit"]), known["logits"]()[0], score
        raise AssertionError("the program ended and the sample is still here")

    def _later(self, piece: str, known: dict) -> dict:
        """The tensors that a piece writes, computed when the first of them is asked for."""
        reads = [known[name] for name in self.pieces[piece]["reads"]]
        made: dict[str, np.ndarray] = {}

        def value(name: str) -> np.ndarray:
            if not made:
                feeds = dict(zip(self.pieces[piece]["reads"], [read() for read in reads], strict=True))
                self.ran.append(piece)
                writes = self.pieces[piece]["writes"]
                made.update(zip(writes, self.engines[piece].run(writes, feeds), strict=True))
            return made[name]

        return {name: lambda name=name: value(name) for name in self.pieces[piece]["writes"]}

    def _choice(self, op: dict, setting: list | int, known: dict) -> dict:
        """The tensors that all cases make, from the case that the sample takes."""
        cases = []
        for case in op["cases"]:
            copies = {to: known[source] for to, source in case["copies"].items()}
            cases.append(copies if case["piece"] is None else self._later(case["piece"], known))

        def taken(by: Callable[[], np.ndarray] = known[op["by"]]) -> dict:
            if isinstance(setting, int):
                return cases[setting]
            return cases[sum(bool(by()[0] > np.float32(cut)) for cut in setting)]

        return {name: lambda name=name: taken()[name]() for name in cases[0]}
