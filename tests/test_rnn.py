import itertools
import math

import pytest
import torch
from torch import nn

from rlcourse.envs import TokenMDP
from rlcourse.rnn import RNNPolicy

V, H = 4, 3
KINDS = ["gru", "lstm"]
EXACT = dict(rtol=0, atol=1e-12)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def policy(kind, randn):
    policy = RNNPolicy(V, H, kind).double()
    for parameter in policy.parameters():
        parameter.data = randn(*parameter.shape)
    return policy


def texts(P, T, generator, B=5):
    tokens = torch.randint(0, V, (B, P + T), generator=generator)
    return tokens[:, :P], tokens[:, P:]


def cell_by_hand(policy, kind, text):
    """The output after the start token and `text`, written out gate by gate."""
    w_in, w_hidden, b_in, b_hidden = (
        getattr(policy.rnn, f"{x}_l0") for x in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h = c = torch.zeros(H, dtype=torch.float64)
    for token in [V, *text]:
        from_input = (w_in @ policy.embedding.weight[token] + b_in).split(H)
        from_memory = (w_hidden @ h + b_hidden).split(H)
        if kind == "gru":
            reset, update = (torch.sigmoid(from_input[k] + from_memory[k]) for k in (0, 1))
            candidate = torch.tanh(from_input[2] + reset * from_memory[2])
            h = (1 - update) * candidate + update * h
        else:
            into, forget, candidate, out = (x + y for x, y in zip(from_input, from_memory))
            c = torch.sigmoid(forget) * c + torch.sigmoid(into) * torch.tanh(candidate)
            h = torch.sigmoid(out) * torch.tanh(c)
    return h


@pytest.mark.parametrize("P, T", [(0, 1), (0, 4), (1, 1), (3, 2)])
def test_evaluate_is_the_recurrence_written_out(policy, kind, P, T, generator):
    inputs, actions = texts(P, T, generator)
    logprobs, values, entropies = policy.evaluate(inputs, actions, with_entropy=True)
    assert logprobs.shape == values.shape == entropies.shape == (5, T)
    for b, t in itertools.product(range(5), range(T)):
        h = cell_by_hand(policy, kind, inputs[b].tolist() + actions[b, :t].tolist())
        scores = (policy.projection.weight @ h + policy.projection.bias).tolist()
        normaliser = math.log(sum(math.exp(x) for x in scores))
        p = [math.exp(x - normaliser) for x in scores]
        assert logprobs[b, t].item() == pytest.approx(scores[actions[b, t]] - normaliser, abs=1e-12)
        assert values[b, t].item() == pytest.approx(
            (policy.value_head.weight[0] @ h + policy.value_head.bias[0]).item()
        )
        assert entropies[b, t].item() == pytest.approx(-sum(x * math.log(x) for x in p), abs=1e-12)
        torch.testing.assert_close(policy.logits(inputs, actions)[b, t].tolist(), scores, **EXACT)
    assert len(policy.evaluate(inputs, actions)) == 2


@pytest.mark.parametrize("P, T", [(0, 1), (0, 4), (1, 3), (3, 3)])
def test_evaluate_is_start_predict_append_one_token_at_a_time(policy, P, T, generator):
    inputs, actions = texts(P, T, generator)
    logprobs, values = policy.evaluate(inputs, actions)
    state = policy.start(inputs)
    for t in range(T):
        logits, value = policy.predict(state)
        assert logits.shape == (5, V) and value.shape == (5,)
        torch.testing.assert_close(logits, policy.logits(inputs, actions)[:, t], **EXACT)
        torch.testing.assert_close(logits.log_softmax(1)[range(5), actions[:, t]], logprobs[:, t], **EXACT)
        torch.testing.assert_close(value, values[:, t], **EXACT)
        state = policy.append(state, actions[:, t])


def test_an_action_is_not_seen_before_it_is_chosen(policy, generator):
    inputs, actions = texts(2, 4, generator)
    logits, (_, values) = policy.logits(inputs, actions), policy.evaluate(inputs, actions)
    for t in range(4):
        other = actions.clone()
        other[:, t] = (other[:, t] + 1) % V
        moved, (_, moved_values) = policy.logits(inputs, other), policy.evaluate(inputs, other)
        assert torch.equal(moved[:, : t + 1], logits[:, : t + 1])
        assert torch.equal(moved_values[:, : t + 1], values[:, : t + 1])
        assert (moved[:, t + 1 :] != logits[:, t + 1 :]).any(-1).all()  # and from then on it is remembered


def test_the_prompt_and_its_order_are_seen(policy):
    actions = torch.zeros(3, 1, dtype=torch.long)
    logprobs, _ = policy.evaluate(torch.tensor([[0, 1], [1, 0], [1, 1]]), actions)
    assert len(set(logprobs.flatten().tolist())) == 3


def test_rows_do_not_see_each_other(policy, generator):
    inputs, actions = texts(2, 3, generator)
    together, _ = policy.evaluate(inputs, actions)
    for b in range(5):
        torch.testing.assert_close(policy.evaluate(inputs[[b]], actions[[b]])[0], together[[b]], **EXACT)


def test_prompt_and_actions_are_one_text(policy, generator):
    """What is said is the same wherever the prompt ends."""
    inputs, actions = texts(0, 4, generator)
    whole, _ = policy.evaluate(inputs, actions)
    part, _ = policy.evaluate(actions[:, :2], actions[:, 2:])
    torch.testing.assert_close(part, whole[:, 2:], **EXACT)


def test_probabilities_of_all_texts_sum_to_1(policy):
    mdp = TokenMDP(V, 3, lambda actions, mask: mask.sum(1), eos=2)
    assert mdp.probabilities(policy).sum().item() == pytest.approx(1, abs=1e-12)


def test_every_parameter_gets_a_gradient(policy, generator):
    inputs, actions = texts(1, 3, generator)
    logprobs, values = policy.evaluate(inputs, actions)
    (logprobs.sum() + values.sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


def test_values_are_0_at_first_and_the_kinds_are_what_they_say(kind, generator):
    policy = RNNPolicy(V, kind=kind)
    assert isinstance(policy.rnn, dict(gru=nn.GRU, lstm=nn.LSTM)[kind]) and policy.rnn.hidden_size == 64
    logprobs, values = policy.evaluate(*texts(1, 2, generator))
    assert (values == 0).all() and logprobs.dtype == torch.float32
    assert policy.embedding.num_embeddings == V + 1 and policy.vocab_size == V
    assert isinstance(RNNPolicy(V).rnn, nn.GRU)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match='kind must be "gru" or "lstm", got \'rnn\''):
        RNNPolicy(V, kind="rnn")


@pytest.mark.parametrize("inputs, actions", [((2,), (2, 3)), ((2, 1), (2,)), ((3, 1), (2, 3)), ((2, 1), (2, 1, 1))])
def test_evaluate_names_wrong_shapes(policy, inputs, actions):
    message = rf"inputs must be \[B, P\] and actions \[B, T\], got \({inputs[0]},.*\) and \({actions[0]},"
    tokens = [torch.zeros(shape, dtype=torch.long) for shape in (inputs, actions)]
    for function in (policy.evaluate, policy.logits):
        with pytest.raises(ValueError, match=message):
            function(*tokens)


@pytest.mark.parametrize("token", [-1, 3])
def test_tokens_outside_the_vocabulary_are_named(token):
    """Token V would be taken for the start token."""
    with pytest.raises(
        ValueError, match=f"must hold tokens 0 to 2, got 1 to {token}" if token > 1 else f"got {token} to 1"
    ):
        RNNPolicy(3, 4).evaluate(torch.tensor([[token, 1]]), torch.tensor([[1, 0]]))
    with pytest.raises(ValueError, match="must hold tokens 0 to 2"):
        RNNPolicy(3, 4).start(torch.tensor([[token]]))
