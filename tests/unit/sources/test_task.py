"""What outputs mean: logits of one label per picture are taken, a softmax is taken off, other things are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dyce_export.graph.capture import capture
from dyce_export.sources.task import as_single_label, check_declared, check_task
from dyce_export.verification.probes import synthetic_images
from dyce_runtime.errors import TaskError, UsageError

IMAGES = synthetic_images(8, (3, 8, 8))


class Net(nn.Module):
    """A classifier whose outputs go through a function."""

    def __init__(self, end, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.end, self.fc = end, nn.Linear(192, classes)

    def logits(self, x):
        return self.fc(x.flatten(1))

    def forward(self, x):
        return self.end(self.logits(x))


def judged(end, classes=4):
    net = Net(end, classes).eval()
    program = capture(net, (3, 8, 8))
    taken = as_single_label(program, net, IMAGES)
    with torch.inference_mode():
        return net, program.module(check_guards=False)(IMAGES), taken


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z,
        lambda z: F.log_softmax(z, 1),
        lambda z: z.softmax(1).log(),
        F.relu,
        torch.tanh,
        lambda z: 30 * torch.tanh(z / 30),
        lambda z: z * torch.sigmoid(z),
        lambda z: z - z.mean(1, keepdim=True),
        lambda z: z * 0.01,
    ],
)
def test_logits_stay_as_they_are(end):
    net, outputs, taken = judged(end)
    assert not taken
    torch.testing.assert_close(outputs, net(IMAGES))


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z.softmax(1),
        lambda z: F.softmax(z, -1),
        lambda z: z.softmax(1).reshape(z.shape[0], 4),
        lambda z: F.dropout(z.softmax(1), training=False).clone(),
    ],
)
def test_a_softmax_at_the_end_is_taken_off(end):
    net, outputs, taken = judged(end)
    assert taken
    torch.testing.assert_close(outputs, net.logits(IMAGES))


@pytest.mark.parametrize(
    ("end", "phrase"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda z: torch.sigmoid(z).clamp(0.01, 0.99), "sigmoid"),
        (lambda z: 100 * torch.sigmoid(z.view(z.shape[0], -1)), "sigmoid"),
        (F.hardsigmoid, "sigmoid"),
        (F.logsigmoid, "sigmoid"),
        (lambda z: torch.sigmoid(z).log(), "sigmoid"),
        (lambda z: torch.cat([1 - torch.sigmoid(z[:, :1]), torch.sigmoid(z[:, :1])], 1), "sigmoid"),
        (torch.special.expit, "sigmoid"),
        (lambda z: 1 / (1 + torch.exp(-z)), "sigmoid"),
        (lambda z: (1 + (-z).exp()) ** -1, "sigmoid"),
        (lambda z: (torch.tanh(z / 2) + 1) / 2, "sigmoid"),
        (lambda z: F.normalize(z), "embedding"),
        (lambda z: z / z.norm(dim=1, keepdim=True), "embedding"),
        (lambda z: z.softmax(1).clamp(1e-7, 1), "probabilities"),
        (lambda z: 10 * z.softmax(1), "probabilities"),
        (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "probabilities"),
    ],
)
def test_other_outputs_are_refused_as_what_they_are(end, phrase):
    with pytest.raises(TaskError, match=phrase):
        judged(end)


def test_one_output_is_refused_with_the_way_to_two():
    with pytest.raises(TaskError, match="single logit") as caught:
        judged(lambda z: z, classes=1)
    assert "zeros_like" in caught.value.hint


def test_the_way_to_two_is_right():
    z = torch.randn(5, 1)
    torch.testing.assert_close(torch.cat([torch.zeros_like(z), z], 1).softmax(1)[:, 1:], torch.sigmoid(z))


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_what_a_model_says_of_itself_counts(problem):
    net = Net(lambda z: z)
    net.config = type("Config", (), {"problem_type": problem})()
    with pytest.raises(TaskError, match=problem):
        check_declared(net)
    net.config.problem_type = "single_label_classification"
    check_declared(net)
    net.num_classes = 0
    with pytest.raises(TaskError, match="without a classifier"):
        check_declared(net)


@pytest.mark.parametrize("task", ["multi-label", "regression", "nonsense", ""])
def test_other_tasks_are_refused_by_name(task):
    check_task("single-label")
    with pytest.raises(UsageError, match="single-label"):
        check_task(task)
