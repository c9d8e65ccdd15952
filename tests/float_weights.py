"""Weights in memory that stand where a conversion's stream of weights does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from converter.weights.inputs import Inputs
from converter.workers import Task


class FloatWeights:
    """The stream's part played in float: every weight as it would be stored, unrounded.

    Args:
        are_precise: they stand for weights that are more precise than what reaches them.
    """

    def __init__(self, parameters: Mapping[str, np.ndarray], are_precise: bool = True) -> None:
        self.parameters = parameters
        self.are_precise = are_precise
        self.stored: dict[str, np.ndarray] = {}
        self.factors: list[np.ndarray] = []
        self.inputs: dict[str, Inputs] = {}

    def embed(self, tokens: np.ndarray, path: str) -> np.ndarray:
        return self.parameters[path][tokens].copy()

    def vector(self, path: str) -> np.ndarray:
        return self.parameters[path]

    def table(self, path: str) -> np.ndarray:
        values = self.parameters[path]
        return values.reshape(len(values), -1)

    def may_scale(self, *paths: str) -> bool:
        return True

    def lack_inputs(self, *paths: str) -> bool:
        return self.are_precise

    def store(self, inputs: Inputs, *paths: str) -> None:
        for path in paths:
            self.inputs[path] = inputs
            factors = 1 if inputs.factors is None else inputs.factors
            self.stored[path] = self.parameters[path] * factors

    def multiply(self, inputs: Inputs, x: np.ndarray, *paths: str) -> list[np.ndarray]:
        self.store(inputs, *paths)
        return [x @ self.parameters[path].T for path in paths]

    def do(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            task()

    def divide(self, path: str, factors: np.ndarray | None) -> None:
        if factors is not None:
            self.factors.append(factors)
            before = self.stored.get(path, self.parameters[path])
            self.stored[path] = (before.T / factors).T
