"""The search once more: one tree, pointers, plain Python numbers. The oracle of the array form."""

import math
from typing import Any

from tests.support.scripted import ENDS

# Its own, so that a change of the product's is seen.
TIE = 1e-5  # scores this close are equal
TRIES = 2  # evaluations of a response before it counts as malformed


class PlainNode:
    def __init__(self, parent=None, step="", p=1.0):
        self.parent, self.children, self.p = parent, [], p
        self.trajectory = [] if parent is None else [*parent.trajectory, step]
        self.tag = "0" if parent is None else f"{parent.tag}.{len(parent.children)}"
        self.depth = len(self.trajectory)
        self.ends = any(end in step for end in ENDS)
        self.visits, self.value_sum, self.draws = 0, 0.0, 0
        self.terminal, self.reward, self.dead = False, None, False

    def ancestors(self):
        node = self
        while node is not None:
            yield node
            node = node.parent


class PlainSearch:
    """Grows one tree the way tests/golden/README.md words it; `ties="first"` only.

    `model` has a score(question, trajectory) and a read-out, where `config.value` wants them.
    """

    def __init__(self, script, prompt, config, reward, model: Any = None):
        self.model = model
        self.script, self.prompt, self.config, self.reward = script, prompt, config, reward
        self.root = PlainNode()
        self.nodes, self.iterations, self.missing = [self.root], 0, 0

    def run(self):
        for _ in range(self.config.iterations):
            if self.root.dead:
                break
            self.iterations += 1
            node = self.root
            while node.children:
                node = self.best(node)
            if node.visits and not node.terminal and node.depth < self.config.max_depth:
                self.expand(node)
                node = self.best(node)
            self.evaluate(node)
        if self.config.visit_all_nodes:
            for node in self.nodes:
                if not (node.visits or (node.ends and node.draws)):
                    self.evaluate(node)
        return self

    def score(self, parent, child):
        c = self.config.c
        if self.config.score == "pucb":
            if not child.visits:
                return 100 * c * child.p
            bonus = c * child.p * math.sqrt(parent.visits) / (1 + child.visits)
        else:
            if not child.visits:
                return 100 * c
            bonus = c * math.sqrt(math.log(parent.visits) / child.visits)
        return child.value_sum / child.visits + bonus

    def best(self, parent):
        alive = [child for child in parent.children if not child.dead]
        top = max(self.score(parent, child) for child in alive)
        return next(child for child in alive if self.score(parent, child) >= top - TIE)

    def expand(self, node):
        steps = []
        for k in range(self.config.num_children):
            step = self.script.expand(self.prompt.question, node.trajectory, k)
            if step in steps:
                continue
            steps.append(step)
            p = self.script.prior(self.prompt.question, node.trajectory, k)
            child = PlainNode(node, step, p if self.config.score == "pucb" else 1.0)
            node.children.append(child)
            self.nodes.append(child)

    def evaluate(self, node):
        if node.terminal:
            self.backup(node, node.reward)
            return
        if self.config.value == "prm" and not node.ends:
            self.backup(node, self.worth(node))
            return
        for _ in range(1 if node.ends else TRIES):  # a judge says the same of the same answer
            response = "".join(node.trajectory)
            if not node.ends:
                response += self.script.rollout(self.prompt.question, node.trajectory, node.draws)
            node.draws += 1
            verdict = self.script.judge(self.prompt.question, response)
            if verdict is not None:
                value = self.reward(*verdict, self.prompt.type)
                if node.ends:
                    node.terminal, node.reward = True, value
                elif self.config.value == "mix" and node.parent:
                    share = self.config.value_weight
                    value = value * (1 - share) + self.worth(node) * share
                self.backup(node, value)
                return
        self.missing += 1
        if node.ends:
            node.dead = True
        self.bury(node)

    def worth(self, node):
        readout = self.model.readout
        if not node.parent:
            return (readout.low + readout.high) / 2
        return readout.value(self.model.score(self.prompt.question, node.trajectory))

    def backup(self, node, value):
        for above in node.ancestors():
            above.visits += 1
            above.value_sum += value
        spent = node.terminal or node.depth >= self.config.max_depth
        if spent and not self.config.reselect_terminal:
            node.dead = True
        self.bury(node)

    def bury(self, node):
        for above in node.ancestors():
            if above.children and all(child.dead for child in above.children):
                above.dead = True
