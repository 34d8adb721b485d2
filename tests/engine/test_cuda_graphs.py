"""A step that is recorded once and replayed trains as the step itself, whatever changes between steps."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlsr.config import load
from fastlsr.engine.cuda_graphs import MOST_DIFFERENCE, ROUNDING, GraphedStep, difference, graphed_step
from fastlsr.engine.session import Session
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.labels.methods import make_plan
from fastlsr.ranks import ALONE

CPU = torch.device("cpu")


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class NoWaiting(TorchDispatchMode):
    """Raises where a CUDA device would have to be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("called a synchronizing CUDA operation\nmore of it")
        return function(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """A recorder as CUDA's graphs are, on the CPU: replays the operations alone, without Python, in their memory."""

    def __init__(self):
        super().__init__()
        self.calls, self.saved, self.made = [], {}, set()

    def run(self, work):
        work()

    def rehearse(self, work):
        with NoWaiting():
            work()

    def forget(self):
        pass

    def record(self, work):
        tape = Tape()
        with torch.random.fork_rng([]), tape:  # a recording does nothing, and draws nothing
            work()
        for storage, content in tape.saved.values():
            storage.copy_(content)
        return tape.replay

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for storage in (each.untyped_storage() for each in tensors((args, kwargs))):
            if storage.data_ptr() not in self.made:
                self.saved.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = function(*args, **(kwargs or {}))
        known = self.made | set(self.saved)
        fresh = [each for each in tensors(result) if each.untyped_storage().data_ptr() not in known]
        self.made |= {each.untyped_storage().data_ptr() for each in fresh}
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, result in self.calls:
            for old, new in zip(tensors(result), tensors(function(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def session_of(digits_dir, state=None, *, graphed, report=print, **options):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.batch_size": 200, "model.name": "resnet8",
            "method.name": "colam", "method.stages": 2, "train.epochs": 6, "train.precision": "fp32",
            "train.compile": "off", "optim.lr": 0.0625, "optim.schedule": "step", "optim.step_epochs": 3,
            "optim.gamma": 0.5}  # fmt: skip
    config = load(overrides=base | {key.replace("__", "."): value for key, value in options.items()})
    session = Session(config, make_plan(config.method, config.train.epochs), CPU, state=state, report=report)
    if graphed:
        session.graphed = GraphedStep(session.step, Tape(), report)
    return session


def trained(session, until=None):
    """The state after the whole run, or after so many batches of it, and the losses of its epochs."""
    losses, done = [], 0
    while not session.finished:
        for batch in session.batches():
            session.train_batch(*batch)
            done += 1
            if done == until:
                return copy.deepcopy(session.state_dict()), losses
        losses.append(session.totals.read())
        session.end_epoch()
    return copy.deepcopy(session.state_dict()), losses


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


CASES = {
    "colam": {},
    "tsla": {"method__name": "tsla", "method__drop_epoch": 4, "method__second_lr": 0.5},
    "online": {"method__name": "online"},
    "cs_kd": {"method__name": "cs_kd"},
    "label_refinery": {"method__name": "label_refinery", "method__generations": 2, "train__epochs": 5},
    "disturb_label": {"method__name": "disturb_label", "method__alpha": 0.5},
    "adamw": {"optim__name": "adamw", "optim__lr": 2.0**-9, "optim__layer_decay": 1.0},
    "clipped": {"optim__clip_norm": 0.5, "train__ema": 0.9, "method__label_pass": "extra"},
    "dropout": {"model__name": "resnet10t", "model__dropout": 0.5, "train__epochs": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_train_as_the_steps_themselves(digits_dir, case):
    """Over phases, generations, rates and ragged batches; rates that float32 holds, so equal to the bit."""
    said = []
    plain = trained(session_of(digits_dir, graphed=False, **CASES[case]))
    replayed = trained(session_of(digits_dir, graphed=True, report=said.append, **CASES[case]))
    assert sum("are one launch" in line for line in said) >= 2, said  # of whole batches and the ragged one
    assert replayed[1] == plain[1] and same(replayed[0], plain[0])


@pytest.mark.parametrize("until", [9, 26, 31])  # of 6 epochs of 8: before and after recording, in a learning epoch
def test_a_run_that_is_stopped_and_records_anew_goes_on_to_the_same_bits(digits_dir, until):
    whole, _ = trained(session_of(digits_dir, graphed=True))
    stopped, _ = trained(session_of(digits_dir, graphed=True), until)
    assert same(trained(session_of(digits_dir, stopped, graphed=True))[0], whole)


class Changed(Tape):
    """Recordings in whose place something else is replayed, or that fail."""

    def __init__(self, changed):
        super().__init__()
        self.changed = changed

    def record(self, work):
        return self.changed(super().record(work))


def fails(replay):
    raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


def forgetting(tensor):
    """A recording that changes all but one tensor."""

    def changed(replay):
        def replay_without():
            kept = tensor.clone()
            replay()
            tensor.copy_(kept)

        return replay_without

    return changed


WRONG = {
    "does nothing": lambda replay: lambda: None,
    "does it twice": lambda replay: lambda: (replay(), replay()),
    "fails": fails,
}


@pytest.mark.parametrize("case", [*WRONG, "waits"])
@pytest.mark.parametrize("model", [{}, {"model__name": "resnet10t", "model__dropout": 0.5}], ids=["", "dropout"])
def test_a_recording_that_does_not_repeat_the_step_is_never_trained_by(digits_dir, case, model):
    """It is dropped, and the run is the one without; where graphs are required it fails in one line."""

    def begun(**options):
        session = session_of(digits_dir, graphed=False, train__epochs=2, **model)
        if case == "waits":
            session.network.model.register_forward_hook(lambda *_: torch.ones(()).item() and None)
        recorder = Changed(WRONG.get(case, lambda replay: replay))
        session.graphed = GraphedStep(session.step, recorder, said.append, **options)
        return session

    said = []
    dropped = trained(begun())[0]
    assert same(dropped, trained(session_of(digits_dir, graphed=False, train__epochs=2, **model))[0])
    assert len(said) == 1 and said[0].startswith("CUDA graphs: off for batches of 200 (") and "\n" not in said[0]
    with pytest.raises(TrainingFailed, match="^train.cuda_graphs=on: [^\n]*$"):
        trained(begun(required=True))


def first_norm(session):
    return next(module for module in session.network.modules() if isinstance(module, torch.nn.BatchNorm2d))


FORGOTTEN = {
    "a weight": lambda session: next(session.network.parameters()),
    "a bias": lambda session: session.network.model.fc.bias,
    "running means": lambda session: first_norm(session).running_mean,
    "a counter": lambda session: first_norm(session).num_batches_tracked,
    "a momentum": lambda session: session.optimizer.state[session.network.model.fc.bias]["momentum_buffer"],
    "the losses": lambda session: session.totals.values[0],
    "the steps": lambda session: session.totals.values[3],
    "class means": lambda session: session.learner.means.logit_sum,
    "class counts": lambda session: session.learner.means.count,
}


@pytest.mark.parametrize("what", [*FORGOTTEN, "Adam's squares"])
@pytest.mark.parametrize("after", [1, 33])  # steps: in the first epoch, and in a later stage
def test_a_recording_that_forgets_one_tensor_is_dropped(digits_dir, what, after):
    options = {"optim__name": "adamw", "optim__lr": 2.0**-9} if "Adam" in what else {}
    session = session_of(digits_dir, graphed=False, **options)
    state, _ = trained(session, after)
    session, said = session_of(digits_dir, state, graphed=False, **options), []
    batches = session.batches()
    session.train_batch(*next(batches))  # makes the optimizer's state
    if "Adam" in what:
        tensor = session.optimizer.state[session.network.model.fc.weight]["exp_avg_sq"]
    else:
        tensor = FORGOTTEN[what](session)
    session.graphed = GraphedStep(session.step, Changed(forgetting(tensor.detach())), said.append)
    for _ in range(4):
        session.train_batch(*next(batches))
    batches.close()
    assert len(said) == 1 and "off for batches of 200" in said[0]


def test_a_shape_whose_recording_fails_leaves_the_others_theirs(digits_dir):
    class Small(Tape):
        def record(self, work):
            return super().record(work) if session.position.batches % 8 < 7 else fails(None)

    said = []
    session = session_of(digits_dir, graphed=False)
    session.graphed = GraphedStep(session.step, Small(), said.append)
    assert same(trained(session)[0], trained(session_of(digits_dir, graphed=False))[0])
    assert ["off" in line for line in said] == [False, True]


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.floats(1e-3, 1), st.floats(0, 2), st.floats(0, 1))
def test_a_difference_of_1_is_the_most_that_is_allowed_of_what_the_step_changes(start, moved, off, noise):
    before = [[torch.tensor(start, dtype=torch.float64)], [torch.ones(2, dtype=torch.int64)]]
    expected = [[before[0][0] + moved], [before[1][0] + 1]]
    again = [[expected[0][0] + noise * moved], expected[1]]
    found = [[expected[0][0] - off * moved], expected[1]]
    allowed = MOST_DIFFERENCE + ROUNDING + 3 * noise
    assert difference(before, expected, again, found) * allowed == pytest.approx(off, abs=1e-6)
    assert difference(before, expected, again, expected) == 0
    nan = [[found[0][0] * torch.nan], expected[1]]
    assert math.isnan(difference(before, expected, expected, nan))
    assert difference(before, before, before, expected) == torch.inf, "what nothing should change has changed"


@pytest.mark.parametrize(("option", "value", "said"), [
    ("train.device", "cpu", "needs a CUDA device"), ("optim.accumulate", 2, "optim.accumulate=2"),
    ("train.precision", "fp16", "fp16"), ("optim.name", "lamb", "not lamb"), ("world_size", 2, "one rank"),
])  # fmt: skip
def test_graphs_that_cannot_be_had_are_one_line_if_required_and_none_else(digits_dir, option, value, said):
    device, ranks = torch.device("cuda"), ALONE
    options = {"train__precision": "fp32"}
    if option == "train.device":
        device = CPU
    elif option == "world_size":
        ranks = replace(ALONE, world_size=value)
    else:
        options[option.replace(".", "__")] = value
    for requested in ("on", "auto", "off"):
        session = session_of(digits_dir, graphed=False, **options)
        config = replace(session.config, train=replace(session.config.train, cuda_graphs=requested))
        if requested == "on":
            with pytest.raises(InputError, match=said):
                graphed_step(session.step, config, device, ranks, print)
        else:
            assert graphed_step(session.step, config, device, ranks, print) is None
