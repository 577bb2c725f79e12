"""GPT-2 as a policy, against the plainest thing that can be called right: raw forward passes, one token at a time."""

import copy
import json
import math
import shutil
import traceback
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.activations import NewGELUActivation
from transformers.utils import logging as transformers_logging

from rlcourse import gpt2
from rlcourse.gpt2 import TINY, GPT2Policy, response_texts, sample_responses
from rlcourse.losses import clipped_surrogate_loss, entropy, exact_kl, kl_estimate, value_loss
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.rewards import sentiment_reward
from rlcourse.rollout import Prompts, Rollout

PROMPTS = ["The film is", "", "A long-winded story of two brothers in Paris, told twice and", "妙 was"]
CLOSE = dict(atol=1e-4, rtol=0)
FAMILIES = ["tiny", "gpt2", "llama", "neox"]


# -- policies -------------------------------------------------------------------------------------------------------


def random_lm(family: str, vocab: int, context: int = 96):
    """A small model with weights large enough for its predictions to depend on every token; GPT-2's has dropout."""
    torch.manual_seed(0)
    if family == "llama":
        sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab, **sizes, num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.2
            )
        )
    if family == "neox":
        sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=vocab, **sizes, max_position_embeddings=context, initializer_range=0.2, hidden_dropout=0.5
            )
        )
    drop = dict(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    sizes = dict(n_positions=context, n_embd=32, n_layer=2, n_head=4)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab, **sizes, **drop, initializer_range=0.2, bos_token_id=0, eos_token_id=0)
    )


def with_random_values(policy: GPT2Policy) -> GPT2Policy:
    torch.manual_seed(1)
    torch.nn.init.normal_(policy.value_head.weight, std=0.3)
    torch.nn.init.normal_(policy.value_head.bias)
    return policy


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def policies(tokenizer):
    made = {name: GPT2Policy(random_lm(name, len(tokenizer)), tokenizer) for name in FAMILIES[1:]}
    made["tiny"] = GPT2Policy.from_pretrained("tiny", device="cpu")
    return {name: with_random_values(policy) for name, policy in made.items()}


@pytest.fixture(params=FAMILIES)
def policy(request, policies):
    """One of the families; shared by the whole file, so a test that changes it takes a copy first."""
    return policies[request.param]


@pytest.fixture
def small(policies):
    """A copy of the small random GPT-2, to change as one likes."""
    return copy.deepcopy(policies["gpt2"])


def ending_with(policy: GPT2Policy, p: float) -> GPT2Policy:
    """A copy whose every action is EOS with probability p (at temperature 1), for whoever looks at its logits."""
    policy = copy.deepcopy(policy)
    eos = policy.tokenizer.eos_token_id

    def force(module, args, logits):
        others = logits.index_fill(-1, torch.tensor([eos], device=logits.device), -math.inf).logsumexp(-1)
        return logits.index_copy(
            -1, torch.tensor([eos], device=logits.device), (others + math.log(p / (1 - p)))[..., None]
        )

    policy.lm.get_output_embeddings().register_forward_hook(force)
    return policy


# -- oracles --------------------------------------------------------------------------------------------------------


@contextmanager
def seen_by(module):
    """The shapes of what `module` is called with, one entry per call."""
    shapes = []

    def look(module, args, kwargs):
        shapes.append(tuple((args or list(kwargs.values()))[0].shape))

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    yield shapes
    handle.remove()


@torch.no_grad()
def one_at_a_time(policy: GPT2Policy, prompt: str, actions: list[int], temperature: float = 1.0):
    """logits [T, V], logprobs [T], values [T] from T forwards of the raw model: one text, no cache, padding or mask.

    The last hidden state is what the vocabulary projection is given, whatever the model calls it.
    """
    read = []
    handle = policy.lm.get_output_embeddings().register_forward_pre_hook(lambda module, args: read.append(args[0]))
    ids, logits = list(policy.tokenizer(prompt)["input_ids"]), []
    for action in actions:
        logits.append(policy.lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double() / temperature)
        ids.append(action)
    handle.remove()
    hidden = torch.stack([x[0, -1] for x in read]).double()
    values = hidden @ policy.value_head.weight[0].double() + policy.value_head.bias.double()
    logprobs = [float(row[a] - row.exp().sum().log()) for row, a in zip(logits, actions)]
    return torch.stack(logits), torch.tensor(logprobs, dtype=torch.float64), values


@pytest.fixture(params=[1.0, 0.6])
def temperature(request):
    return request.param


@pytest.fixture
def rollout(policy, temperature, generator):
    return sample_responses(policy, PROMPTS, 9, temperature, generator)


# -- evaluate, logits -----------------------------------------------------------------------------------------------


def test_evaluate_scores_as_one_token_at_a_time(policy, rollout, temperature):
    logprobs, values, entropies = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    logits = policy.logits(rollout.inputs, rollout.actions)
    for b, prompt in enumerate(PROMPTS):
        right_logits, right_logprobs, right_values = one_at_a_time(
            policy, prompt, rollout.actions[b].tolist(), temperature
        )
        torch.testing.assert_close(logprobs[b].double(), right_logprobs, **CLOSE)
        torch.testing.assert_close(values[b].double(), right_values, **CLOSE)
        torch.testing.assert_close(logits[b].double(), right_logits, atol=1e-4, rtol=1e-5)
        right_entropies = torch.distributions.Categorical(logits=right_logits).entropy()
        torch.testing.assert_close(entropies[b].double(), right_entropies, **CLOSE)
    assert {x.dtype for x in (logprobs, values, entropies, logits)} == {torch.float32}
    assert (logprobs < 0).all() and (entropies >= 0).all()


def test_evaluate_without_entropy_gives_two(policy, rollout):
    two = policy.evaluate(rollout.inputs, rollout.actions)
    three = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    assert len(two) == 2 and all(torch.equal(a, b) for a, b in zip(two, three))


def test_logits_give_the_logprobs_and_entropies_of_evaluate(policy, rollout):
    logprobs, _, entropies = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    categorical = torch.distributions.Categorical(logits=policy.logits(rollout.inputs, rollout.actions))
    torch.testing.assert_close(categorical.log_prob(rollout.actions), logprobs, **CLOSE)
    torch.testing.assert_close(categorical.entropy(), entropies, **CLOSE)


def test_a_forward_on_given_actions_has_probabilities_that_sum_to_1(policies):
    """A policy that saw the token it predicts would give every choice of the last action a probability near 1."""
    policy = policies["tiny"]
    V, prompt = len(policy.tokenizer), policy.encode(["The film is"])
    rows = Prompts(prompt.ids.expand(V, -1), prompt.mask.expand(V, -1), prompt.temperature.expand(V))
    first = policy.tokenizer(" a", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        actions = torch.stack([torch.full((V,), first), torch.arange(V)], dim=1)
        total = policy.evaluate(rows, actions)[0][:, 1].exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)


def test_later_actions_change_nothing_before_them(policy, rollout):
    changed = rollout.actions.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % len(policy.tokenizer)
    before = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    after = policy.evaluate(rollout.inputs, changed, with_entropy=True)
    torch.testing.assert_close(before[0][:, :5], after[0][:, :5], **CLOSE)
    for x, y in zip(before[1:], after[1:]):  # the action taken at 5 is not yet known when V and the entropy are taken
        torch.testing.assert_close(x[:, :6], y[:, :6], **CLOSE)
    assert not torch.allclose(before[1][:, 6:], after[1][:, 6:], atol=1e-2)


def test_minibatches_score_like_the_batch(policy, rollout):
    whole = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    rows = torch.tensor([2, 0])
    part = policy.evaluate(rollout[rows].inputs, rollout[rows].actions, with_entropy=True)
    for x, y in zip(whole, part):
        torch.testing.assert_close(x[rows], y, **CLOSE)


def test_forbidden_tokens_are_never_drawn_and_add_nothing(small, generator):
    """A model may give a token the logit -inf; `losses.entropy` knows it, so the policy's own entropies must."""
    head, banned = small.lm.get_output_embeddings(), torch.arange(10, len(small.tokenizer), 2)
    head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, banned, -math.inf))
    rollout = sample_responses(small, PROMPTS * 8, 5, generator=generator)
    assert not torch.isin(rollout.actions, banned).any() and rollout.old_logprobs.isfinite().all()
    logprobs, _, entropies = small.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    torch.testing.assert_close(logprobs * rollout.mask, rollout.old_logprobs, **CLOSE)
    allowed = torch.ones(len(small.tokenizer), dtype=torch.bool).index_fill(0, banned, False)
    for b, prompt in enumerate(PROMPTS):
        logits = one_at_a_time(small, prompt, rollout.actions[b].tolist())[0][:, allowed]
        right = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropies[b].double(), right, **CLOSE)
    (logprobs.mean() - entropies.mean()).backward()
    assert all(p.grad.isfinite().all() for p in small.lm.parameters())


# -- blocked tokens -------------------------------------------------------------------------------------------------


def others(policy, blocked):
    """[V] bool: what is left."""
    return torch.ones(len(policy.tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(blocked), False)


def likely(policy, count=40):
    """The likeliest first tokens after a prompt, EOS not among them: those whose absence is seen."""
    order = one_at_a_time(policy, "The film is", [0])[0][0].argsort(descending=True).tolist()
    return [token for token in order if token != policy.tokenizer.eos_token_id][:count]


def test_a_blocked_token_never_comes_and_the_others_share_its_part(policies, generator):
    """10,000 draws, of which thousands would have been blocked; the rest as the renormalised softmax has them."""
    policy, N, T = policies["gpt2"], 10_000, 0.25
    blocked = likely(policy, 8)
    p = one_at_a_time(policy, "The film is", [0], T)[0][0].softmax(0)
    assert p[blocked].sum() > 0.4
    drawn = sample_responses(policy, ["The film is"] * N, 1, T, generator, blocked).actions[:, 0]
    counts = torch.bincount(drawn, minlength=len(p))
    assert not counts[blocked].any()
    right = N * p * others(policy, blocked) / p[others(policy, blocked)].sum()
    order = right.argsort(descending=True)
    cells = [order[:8].tolist()[i : i + 1] for i in range(8)] + [order[8:].tolist()]
    chi_square = sum((counts[c].sum() - right[c].sum()) ** 2 / right[c].sum() for c in cells)
    assert chi_square < 42  # exceeded by one in a million for 8 degrees of freedom


def test_blocked_rollout_scores_as_one_token_at_a_time(policy, temperature, generator):
    blocked = likely(policy)
    rollout = sample_responses(policy, PROMPTS, 9, temperature, generator, blocked)
    assert not torch.isin(rollout.actions, torch.tensor(blocked)).any()
    logprobs, values, entropies = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    left = others(policy, blocked)
    for b, prompt in enumerate(PROMPTS):
        actions = rollout.actions[b].tolist()
        logits, _, right_values = one_at_a_time(policy, prompt, actions, temperature)
        right = torch.stack([row[a] - row[left].logsumexp(0) for row, a in zip(logits, actions)])
        n = int(rollout.mask[b].sum())
        torch.testing.assert_close(rollout.old_logprobs[b, :n].double(), right[:n], **CLOSE)
        torch.testing.assert_close(logprobs[b].double(), right, **CLOSE)
        torch.testing.assert_close(values[b].double(), right_values, **CLOSE)
        right_entropies = torch.distributions.Categorical(logits=logits[:, left]).entropy()
        torch.testing.assert_close(entropies[b].double(), right_entropies, **CLOSE)


def test_policy_reference_and_minibatch_score_what_was_sampled(small, generator):
    """The inputs tell the reference what was blocked; one that did not know would show a KL to itself."""
    blocked, ref = likely(small), small.frozen_copy()
    rollout = sample_responses(small, PROMPTS, 6, generator=generator, blocked=blocked)
    for p in (small, ref):
        logprobs, _ = p.evaluate(rollout.inputs, rollout.actions)
        torch.testing.assert_close((logprobs * rollout.mask).detach(), rollout.old_logprobs, **CLOSE)
    rows = torch.tensor([3, 1])
    part, _ = small.evaluate(rollout[rows].inputs, rollout[rows].actions)
    torch.testing.assert_close(part * rollout[rows].mask, rollout.old_logprobs[rows], **CLOSE)
    free, _ = small.evaluate(small.encode(PROMPTS), rollout.actions)
    assert ((rollout.old_logprobs - free) * rollout.mask)[rollout.mask > 0].min() > 0.01


def test_probabilities_under_blocking_sum_to_1_and_a_blocked_action_has_none(small):
    V, blocked = len(small.tokenizer), likely(small)
    inputs = small.encode(["The film is"] * V, 0.7, blocked)
    with torch.no_grad():
        logprobs, _ = small.evaluate(inputs, torch.arange(V)[:, None])
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert logprobs[blocked].eq(-math.inf).all() and logprobs[others(small, blocked)].isfinite().all()
    assert inputs.blocked.shape == (V, V) and inputs.blocked.any(0).nonzero()[:, 0].tolist() == sorted(blocked)


def test_entropy_kl_and_gradients_stay_finite(small, generator):
    blocked = likely(small)
    rollout = sample_responses(small, PROMPTS, 5, generator=generator, blocked=blocked)
    ref, left = small.frozen_copy(), others(small, blocked)
    with torch.no_grad():
        for parameter in ref.lm.parameters():
            parameter.mul_(0.9)
    logits = small.logits(rollout.inputs, rollout.actions)
    ref_logits = ref.logits(rollout.inputs, rollout.actions)
    assert logits[..., blocked].eq(-math.inf).all() and ref_logits[..., blocked].eq(-math.inf).all()
    kl, entropies = exact_kl(logits, ref_logits, rollout.mask), entropy(logits, rollout.mask)
    p, q = (torch.distributions.Categorical(logits=x[..., left]) for x in (logits, ref_logits))
    right = torch.distributions.kl_divergence(p, q) * rollout.mask
    torch.testing.assert_close(kl, right, **CLOSE)
    torch.testing.assert_close(entropies, p.entropy() * rollout.mask, **CLOSE)
    assert right.sum() > 0.05
    logprobs, _, other_entropies = small.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    ((logprobs * rollout.mask).sum() + other_entropies.sum() + entropies.sum() + kl.sum()).backward()
    assert all(p.grad.isfinite().all() for p in small.lm.parameters())


def test_an_update_under_blocking(small, generator):
    rollout = sample_responses(small, PROMPTS * 2, 6, generator=generator, blocked=likely(small))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    advantages, returns = gae(torch.randn(8, rollout.actions.shape[1], generator=generator) * rollout.mask,
                              rollout.values, rollout.mask)  # fmt: skip
    stats = ppo_update(small, optimizer, rollout, advantages, returns, PPOConfig(epochs=2, minibatches=2, ent_coef=0.1))
    assert stats["first_ratio"] == pytest.approx(1, abs=1e-4) and all(math.isfinite(x) for x in stats.values())
    assert all(p.isfinite().all() for p in small.parameters())


def test_nothing_blocked_changes_nothing(small):
    first, second, third = (
        sample_responses(small, PROMPTS, 5, generator=torch.Generator().manual_seed(0), blocked=blocked)
        for blocked in (None, [], set())
    )
    assert same(first, second) and same(first, third) and first.inputs.blocked is None
    for x, y in zip(*(small.evaluate(r.inputs, r.actions, with_entropy=True) for r in (first, second))):
        assert x.equal(y)


def test_all_but_eos_may_be_blocked(small, generator):
    eos = small.tokenizer.eos_token_id
    everything = {*range(len(small.tokenizer))} - {eos}
    rollout = sample_responses(small, PROMPTS, 5, generator=generator, blocked=everything)
    assert rollout.actions.tolist() == [[eos]] * 4 and rollout.old_logprobs.tolist() == [[0]] * 4


@pytest.mark.parametrize(
    "blocked, message",
    [
        ([3, 0], "blocked holds 0, the id of EOS, so a response could never end"),
        (range(4096), "blocked holds 0, the id of EOS"),
        ([4096], "blocked must be a list of token ids, whole numbers from 0 to 4095, got one with 4096 in it"),
        ([5, -1], "whole numbers from 0 to 4095, got one with -1 in it"),
        ([1.0], "got one with 1.0 in it"),
        ([True], "got one with True in it"),
        (["bad"], "got one with 'bad' in it"),
        ("bad", "got one with 'b' in it"),
        (torch.tensor([1, 2]), r"got one with tensor\(1\) in it"),
        (7, "whole numbers from 0 to 4095, got int"),
    ],
)
def test_bad_blocked_is_named_before_anything_is_computed(small, blocked, message):
    assert small.tokenizer.eos_token_id == 0 and len(small.tokenizer) == 4096
    with seen_by(small.lm.get_output_embeddings()) as calls:
        for call in (
            lambda: small.encode(["A"], 1.0, blocked),
            lambda: sample_responses(small, ["A"], 2, blocked=blocked),
        ):
            with pytest.raises(ValueError, match=message):
                call()
    assert not calls


# -- lengths --------------------------------------------------------------------------------------------------------


def test_response_of_length_one(policy, generator):
    rollout = sample_responses(policy, PROMPTS, 1, generator=generator)
    assert rollout.actions.shape == (4, 1) and rollout.mask.eq(1).all()
    for b, prompt in enumerate(PROMPTS):
        _, logprobs, values = one_at_a_time(policy, prompt, rollout.actions[b].tolist())
        torch.testing.assert_close(rollout.old_logprobs[b].double(), logprobs, **CLOSE)
        torch.testing.assert_close(rollout.values[b].double(), values, **CLOSE)


# -- the sampling pass ----------------------------------------------------------------------------------------------


def test_sampling_pass_scores_as_one_token_at_a_time(policy, rollout, temperature):
    for b, prompt in enumerate(PROMPTS):
        n = int(rollout.mask[b].sum())
        _, logprobs, values = one_at_a_time(policy, prompt, rollout.actions[b, :n].tolist(), temperature)
        torch.testing.assert_close(rollout.old_logprobs[b, :n].double(), logprobs, **CLOSE)
        torch.testing.assert_close(rollout.values[b, :n].double(), values, **CLOSE)


def test_ratio_is_one_before_any_update(policy, rollout):
    logprobs, values = policy.evaluate(rollout.inputs, rollout.actions)
    ratio = ((logprobs - rollout.old_logprobs) * rollout.mask).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), **CLOSE)
    torch.testing.assert_close(values * rollout.mask, rollout.values, **CLOSE)


def test_rollout_is_plain_data(rollout):
    assert rollout.actions.dtype == torch.int64
    for x in (rollout.mask, rollout.old_logprobs, rollout.values):
        assert x.dtype == torch.float32 and not x.requires_grad
    assert rollout.ref_logprobs is None


def test_reference_scores_at_the_same_temperature(policy, generator):
    """At T = 0.6 a reference that scored at T = 1 would show several nats of KL to itself."""
    rollout = sample_responses(policy, PROMPTS, 6, 0.6, generator)
    ref = policy.frozen_copy()
    with torch.no_grad():
        logprobs, ref_logprobs = (p.evaluate(rollout.inputs, rollout.actions)[0] for p in (policy, ref))
        logits, ref_logits = (p.logits(rollout.inputs, rollout.actions) for p in (policy, ref))
    assert kl_estimate(logprobs, ref_logprobs, rollout.mask, kind="k3").abs().max() < 1e-6
    assert exact_kl(logits, ref_logits, rollout.mask).abs().max() < 1e-6
    torch.testing.assert_close(rollout.old_logprobs, ref_logprobs * rollout.mask, **CLOSE)


def test_each_row_is_scored_at_its_own_temperature(small, generator):
    rollout = sample_responses(small, PROMPTS, 5, generator=generator)
    temperatures = [0.3, 1.0, 2.0, 5.0]
    inputs = Prompts(rollout.inputs.ids, rollout.inputs.mask, torch.tensor(temperatures))
    logprobs, _, entropies = small.evaluate(inputs, rollout.actions, with_entropy=True)
    for b, (prompt, T) in enumerate(zip(PROMPTS, temperatures)):
        logits, right, _ = one_at_a_time(small, prompt, rollout.actions[b].tolist(), T)
        torch.testing.assert_close(logprobs[b].double(), right, **CLOSE)
        right_entropies = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropies[b].double(), right_entropies, **CLOSE)


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_first_token_is_drawn_from_the_tempered_softmax(policies, temperature, generator):
    """4,096 draws in about 30 cells of like probability: chi-square stays below a bound exceeded by 1 in 10^6."""
    policy, N = policies["tiny"], 4096
    rollout = sample_responses(policy, ["The film is"] * N, 1, temperature, generator)
    logits, _, _ = one_at_a_time(policy, "The film is", [0], temperature)
    p = logits[0].softmax(0)
    order = p.argsort(descending=True)
    cell = torch.empty_like(order)
    cell[order] = ((p[order].cumsum(0) - p[order]) * 30).long()
    expected = N * torch.zeros(31, dtype=torch.float64).index_add(0, cell, p)
    drawn = torch.zeros(31, dtype=torch.float64).index_add(0, cell[rollout.actions[:, 0]], torch.ones(N).double())
    used = expected > 5
    cells = int(used.sum())
    assert cells > 8
    chi2 = ((drawn - expected) ** 2 / expected)[used].sum().item()
    df = cells - 1
    bound = df * (1 - 2 / (9 * df) + 4.75 * math.sqrt(2 / (9 * df))) ** 3  # Wilson and Hilferty 1931, at 4.75 sigma
    assert chi2 < bound


def test_nothing_is_cut_off(policies, generator):
    """No top-k and no top-p: tokens outside the 50 likeliest come as often as they should."""
    policy, N = policies["tiny"], 2048
    rollout = sample_responses(policy, ["The film is"] * N, 1, 1.7, generator)
    p = one_at_a_time(policy, "The film is", [0], 1.7)[0][0].softmax(0)
    tail = torch.ones_like(p).index_fill(0, p.topk(50).indices, 0)
    share, drawn = float((p * tail).sum()), float(tail[rollout.actions[:, 0]].mean())
    assert share > 0.1
    assert drawn == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / N))


# -- prompts, padding -----------------------------------------------------------------------------------------------


def test_prompts_are_what_the_tokenizer_says_padded_on_the_left(policies):
    inputs = policies["tiny"].encode(PROMPTS, 0.7)
    texts = [policies["tiny"].tokenizer.backend_tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert inputs.ids.shape == (4, max(map(len, texts)))
    for row, mask, right in zip(inputs.ids.tolist(), inputs.mask.tolist(), texts):
        assert row[len(row) - len(right) :] == right
        assert mask == [0] * (len(row) - len(right)) + [1] * len(right)
    assert inputs.temperature.tolist() == pytest.approx([0.7] * 4)


def test_left_padding_changes_nothing(policy, generator):
    """The shortest prompt alone, without padding, and beside one that is very much longer."""
    short, long = "The film is", " ".join(["A long-winded story of two brothers in Paris"] * 3)
    alone = sample_responses(policy, [short], 7, 0.8, generator)
    beside = policy.encode([long, short, ""], 0.8)
    assert (beside.mask[1] == 0).sum() > 10 and alone.inputs.mask.eq(1).all()
    actions = alone.actions.expand(3, -1)
    for x, y in zip(
        (*policy.evaluate(alone.inputs, alone.actions, with_entropy=True), policy.logits(alone.inputs, alone.actions)),
        (*policy.evaluate(beside, actions, with_entropy=True), policy.logits(beside, actions)),
    ):
        torch.testing.assert_close(y[1], x[0], atol=1e-4, rtol=1e-5)


def test_the_same_uniforms_write_the_same_text_whatever_else_is_in_the_batch(policy, generator):
    """Alone and without padding, or beside others, padded, and with rows that leave the batch when they have ended."""
    uniforms = torch.rand(len(PROMPTS), 20, generator=generator, dtype=torch.float64)
    together = sample_responses(policy, PROMPTS, 20, uniforms=uniforms)
    for b, prompt in enumerate(PROMPTS):
        alone = sample_responses(policy, [prompt], 20, uniforms=uniforms[b : b + 1])
        n = int(together.mask[b].sum())
        assert alone.actions.shape == (1, n) and alone.actions[0].equal(together.actions[b, :n])
        torch.testing.assert_close(together.old_logprobs[b, :n], alone.old_logprobs[0], **CLOSE)
        torch.testing.assert_close(together.values[b, :n], alone.values[0], **CLOSE)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_each_token_is_where_the_summed_probabilities_pass_the_uniform(small, temperature, generator):
    """In a loop over the words, in float64; the last uniform is the largest below 1."""
    uniforms = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    uniforms[1, -1] = 1 - 2**-53
    rollout = sample_responses(ending_with(small, 1e-9), ["The film is", ""], 6, temperature, uniforms=uniforms)
    logits = ending_with(small, 1e-9).logits(rollout.inputs, rollout.actions).detach()
    pi = logits.double().softmax(-1)
    for b in range(2):
        for t in range(6):
            below = float(pi[b, t, : rollout.actions[b, t]].sum())
            assert below - 1e-6 <= uniforms[b, t] <= below + float(pi[b, t, rollout.actions[b, t]]) + 1e-6


def test_a_word_without_probability_is_not_drawn_even_at_a_uniform_of_0():
    log_pi = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log().expand(4, -1)
    drawn = gpt2._inverse_cdf(log_pi, torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert drawn.tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("bad", [torch.zeros(1, 4), torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.long)])
def test_bad_uniforms_are_named(small, bad):
    with pytest.raises(ValueError, match=r"uniforms must be \[B, max_new_tokens\] = \(2, 4\) numbers in \[0, 1\), got"):
        sample_responses(small, ["a", "b"], 4, uniforms=bad)


def test_rows_that_have_ended_leave_the_batch(small, generator):
    policy = ending_with(small, 0.2)
    with seen_by(policy.lm.get_output_embeddings()) as shapes:
        rollout = sample_responses(policy, [""] * 32, 24, generator=generator)
    lengths = rollout.mask.sum(1)
    for t, (rows, *_) in enumerate(shapes):
        assert rows == (lengths > t // 8 * 8).sum()  # looked at every eight tokens
    assert shapes[0][0] == 32 and shapes[-1][0] < 32


@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_positions_are_what_makes_padding_harmless(policies, name, monkeypatch, generator):
    """So the two tests above can fail: without position ids a padded GPT-2 says something else."""
    policy = policies[name]
    rollout = sample_responses(policy, PROMPTS, 6, generator=generator)
    monkeypatch.setattr(gpt2, "_positions", lambda mask: torch.arange(mask.shape[1]).expand_as(mask))
    wrong, _ = policy.evaluate(rollout.inputs, rollout.actions)
    assert ((wrong - rollout.old_logprobs) * rollout.mask)[:2].abs().max() > 0.01  # padded rows
    assert ((wrong - rollout.old_logprobs) * rollout.mask)[2].abs().max() < 1e-4  # the longest has no padding


def test_bos_comes_from_the_bundled_tokenizer(policies, tmp_path):
    policies["tiny"].save_pretrained(tmp_path)
    for folder in (TINY, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
        assert tokenizer("film")["input_ids"][0] == tokenizer.bos_token_id
        assert tokenizer("film")["input_ids"][1:] == tokenizer("film", add_special_tokens=False)["input_ids"]
    assert GPT2Policy.from_pretrained(tmp_path, device="cpu").encode([""]).ids.tolist() == [[tokenizer.bos_token_id]]


def byte_tokenizer(size: int, **special) -> PreTrainedTokenizerFast:
    """As GPT-2's own: `size` entries, <|endoftext|> the last, and nothing put before a text. Here a token is a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = alphabet + [f"unused{i}" for i in range(size - len(alphabet) - 1)] + ["<|endoftext|>"]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = special or dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


def test_no_bos_is_put_before_prompts_by_our_code(generator):
    tokenizer = byte_tokenizer(257)
    policy = GPT2Policy(random_lm("gpt2", 257), tokenizer)
    inputs = policy.encode(["film", "a"])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert inputs.ids[0].tolist() == [alphabet.index(letter) for letter in "film"]
    assert inputs.mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    with pytest.raises(ValueError, match=r"prompt 1 \(''\) gives no token"):
        sample_responses(policy, ["film", ""], 2, generator=generator)


def test_empty_prompt_is_fine_for_the_bundled_model(policies, generator):
    rollout = sample_responses(policies["tiny"], ["", ""], 3, generator=generator)
    assert rollout.inputs.ids.shape == (2, 1)


# -- EOS ------------------------------------------------------------------------------------------------------------


def test_eos_is_an_action_that_counts(policy, generator):
    p = 0.3
    policy = ending_with(policy, p)
    eos = policy.tokenizer.eos_token_id
    rollout = sample_responses(policy, ["The film is", ""] * 40, 12, generator=generator)
    rows = rollout.actions.tolist()
    lengths = [row.index(eos) + 1 if eos in row else len(row) for row in rows]
    assert min(lengths) == 1 and len(set(lengths)) > 4 and rollout.actions.shape[1] == max(lengths)
    for b, n in enumerate(lengths):
        assert rollout.mask[b].tolist() == [1.0] * n + [0.0] * (max(lengths) - n)
        assert set(rows[b][n:]) <= {eos}
        assert rollout.old_logprobs[b, n:].eq(0).all() and rollout.values[b, n:].eq(0).all()
        assert rollout.old_logprobs[b, :n].lt(0).all() and rollout.values[b, :n].ne(0).all()
        if rows[b][n - 1] == eos:  # ending has the probability that the model gave it
            assert rollout.old_logprobs[b, n - 1].item() == pytest.approx(math.log(p), abs=1e-4)
    logprobs, values = policy.evaluate(rollout.inputs, rollout.actions)
    torch.testing.assert_close(logprobs * rollout.mask, rollout.old_logprobs, **CLOSE)
    torch.testing.assert_close(values * rollout.mask, rollout.values, **CLOSE)


def test_batch_stops_when_every_row_has_ended(small, generator):
    rollout = sample_responses(ending_with(small, 0.5), [""] * 8, 64, generator=generator)
    longest = int(rollout.mask.sum(1).max())
    assert rollout.actions.shape[1] == longest < 64 and rollout.mask[:, -1].any()
    policy = ending_with(small, 1 - 1e-6)
    with seen_by(policy.lm.get_output_embeddings()) as calls:
        rollout = sample_responses(policy, [""] * 8, 64, generator=generator)
    assert rollout.actions.tolist() == [[policy.tokenizer.eos_token_id]] * 8
    assert len(calls) <= 8


def test_ended_rows_wait_for_the_longest(small, generator):
    """No row is cut short because others have ended: without EOS it has all the tokens it was promised."""
    policy = ending_with(small, 0.08)
    rollout = sample_responses(policy, [""] * 16, 20, generator=generator)
    lengths, ended = rollout.mask.sum(1), rollout.actions.eq(policy.tokenizer.eos_token_id).any(1)
    assert rollout.actions.shape == (16, 20) and lengths.min() < 8
    assert 0 < (~ended).sum() < 16 and lengths[~ended].eq(20).all()


class HostReads(TorchDispatchMode):
    """Counts what rlcourse reads from tensors (`if tensor`, `.item()`, `nonzero`): each is a wait for the device.

    Those of transformers are left out: looking for padding, it reads one number in every forward.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            files = [frame.filename for frame in traceback.extract_stack() if frame.filename != __file__]
            self.count += [file for file in files if "/torch/" not in file][-1] == gpt2.__file__
        return function(*args, **(kwargs or {}))


def test_sampling_reads_the_host_every_eighth_token_at_most(small, generator):
    policy, counts = ending_with(small, 1e-9), {}
    for T in (8, 40):
        with HostReads() as reads:
            assert sample_responses(policy, ["The film is", ""], T, generator=generator).actions.shape[1] == T
        counts[T] = reads.count
    assert 0 < counts[40] - counts[8] <= (40 - 8) / 8


def test_gpt2s_own_gelu_is_one_operation_and_the_same_function(tokenizer):
    lm = random_lm("gpt2", len(tokenizer)).eval()
    for block in lm.transformer.h:
        block.mlp.act = NewGELUActivation()
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        before = lm(ids).logits
        policy = GPT2Policy(lm, tokenizer)
        torch.testing.assert_close(policy.lm(ids).logits, before, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, NewGELUActivation) for module in policy.modules())


# -- what is computed -----------------------------------------------------------------------------------------------


def test_vocabulary_projection_runs_on_the_actions_only(policy, generator):
    B, T, H = len(PROMPTS), 5, policy.value_head.in_features
    policy_ends_never = ending_with(policy, 1e-9)
    with seen_by(policy_ends_never.lm.get_output_embeddings()) as shapes:
        rollout = sample_responses(policy_ends_never, PROMPTS, T, generator=generator)
    assert shapes == [(B, 1, H)] * T
    for look in (policy.evaluate, policy.logits):
        with seen_by(policy.lm.get_output_embeddings()) as shapes:
            look(rollout.inputs, rollout.actions)
        assert shapes == [(B, T, H)]


def test_sampling_pass_reads_the_prompt_once(small, generator):
    policy = ending_with(small, 1e-9)
    P = policy.encode(PROMPTS).ids.shape[1]
    with seen_by(policy.lm.get_input_embeddings()) as shapes:
        sample_responses(policy, PROMPTS, 5, generator=generator)
    assert shapes == [(4, P)] + [(4, 1)] * 4  # cached, and no second forward afterwards


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_train_keeps_dropout_off_and_gradients_on(policies, name, generator):
    policy = copy.deepcopy(policies[name])
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in policy.modules())
    rollout = sample_responses(policy, PROMPTS, 5, generator=generator)
    looks = []
    for mode in (policy.train, policy.train, policy.eval, lambda: policy.train(True), lambda: policy.train(False)):
        assert mode() is policy
        looks.append(policy.evaluate(rollout.inputs, rollout.actions))
    for logprobs, values in looks[1:]:
        assert logprobs.equal(looks[0][0]) and values.equal(looks[0][1])
    assert policy.train().training and not policy.lm.training and policy.value_head.training
    (looks[3][0].sum() + looks[3][1].sum()).backward()
    for parameter_name, parameter in policy.named_parameters():
        if not parameter_name.endswith("attention.query_key_value.bias"):  # a bias on all keys alike has gradient 0
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


def test_values_train_the_body_too(small, generator):
    rollout = sample_responses(small, PROMPTS, 4, generator=generator)
    small.evaluate(rollout.inputs, rollout.actions)[1].sum().backward()
    assert small.lm.transformer.h[0].attn.c_attn.weight.grad.abs().max() > 0


def test_value_head_starts_at_zero(small, tokenizer, generator):
    policy = GPT2Policy(small.lm, tokenizer)
    rollout = sample_responses(policy, PROMPTS, 4, generator=generator)
    assert rollout.values.eq(0).all() and policy.evaluate(rollout.inputs, rollout.actions)[1].eq(0).all()


def test_dtype_means_nothing_on_a_cpu(small, generator):
    rollout = sample_responses(small, PROMPTS, 4, generator=generator)
    half = GPT2Policy(small.lm, small.tokenizer, torch.bfloat16)
    half.value_head = small.value_head
    assert not half.autocasts
    for x, y in zip(
        half.evaluate(rollout.inputs, rollout.actions), small.evaluate(rollout.inputs, rollout.actions), strict=True
    ):
        assert x.equal(y)


def test_under_autocast_old_logprobs_are_those_of_evaluate(policies, monkeypatch, generator):
    """Autocast for once on the CPU: a cached bfloat16 forward differs from a whole one, so it must be recomputed."""
    policy = copy.deepcopy(policies["tiny"])
    policy.dtype = torch.bfloat16
    in_float32 = sample_responses(policy, PROMPTS, 24, generator=generator)
    monkeypatch.setattr(GPT2Policy, "autocasts", True)
    rollout = sample_responses(policy, PROMPTS, 24, generator=generator)
    with torch.no_grad():
        logprobs, values = policy.evaluate(rollout.inputs, rollout.actions)
        other, _ = policy.evaluate(in_float32.inputs, in_float32.actions)
    assert not torch.allclose(other * in_float32.mask, in_float32.old_logprobs, atol=1e-3)  # bfloat16 was really on
    assert {logprobs.dtype, values.dtype, rollout.old_logprobs.dtype} == {torch.float32}
    torch.testing.assert_close(rollout.old_logprobs, logprobs * rollout.mask, atol=1e-6, rtol=0)
    torch.testing.assert_close(rollout.values, values * rollout.mask, atol=1e-6, rtol=0)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


# -- randomness -----------------------------------------------------------------------------------------------------


def same(a: Rollout, b: Rollout) -> bool:
    return all(getattr(a, name).equal(getattr(b, name)) for name in ("actions", "mask", "old_logprobs", "values"))


def test_the_generator_decides(small):
    def roll(seed):
        return sample_responses(small, PROMPTS, 6, generator=torch.Generator().manual_seed(seed))

    assert same(roll(3), roll(3)) and not roll(3).actions.equal(roll(4).actions)


def test_the_callers_generator_advances_and_the_global_one_does_not(small, generator):
    global_state, state = torch.get_rng_state(), generator.get_state()
    first = sample_responses(small, PROMPTS, 6, generator=generator)
    assert not generator.get_state().equal(state) and torch.get_rng_state().equal(global_state)
    assert not sample_responses(small, PROMPTS, 6, generator=generator).actions.equal(first.actions)


def test_without_a_generator_the_global_one_is_used(small):
    torch.manual_seed(5)
    first = sample_responses(small, PROMPTS, 6)
    assert not sample_responses(small, PROMPTS, 6).actions.equal(first.actions)
    torch.manual_seed(5)
    assert same(sample_responses(small, PROMPTS, 6), first)


def two_iterations():
    """Two iterations of the loop that notebook 07 shows: the statistics, and every weight afterwards."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    policy, reward = GPT2Policy.from_pretrained("tiny", device="cpu"), sentiment_reward()
    ref_policy, optimizer = policy.frozen_copy(), torch.optim.AdamW(policy.parameters(), lr=1e-3)
    prompts, history = ["The film is", "This story", "A", "It is"] * 3, []
    for _ in range(2):
        rollout = sample_responses(policy, prompts, max_new_tokens=8, generator=generator)
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        scores = reward(prompts, response_texts(policy, rollout))
        rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, 0.05)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, lam=1.0)
        history.append(ppo_update(policy, optimizer, rollout, advantages, returns, PPOConfig(epochs=1, minibatches=2)))
    return history, policy.state_dict()


def test_same_seed_same_run_bit_for_bit():
    (first, weights), (second, weights_again) = two_iterations(), two_iterations()
    assert first == second and len(first) == 2
    assert all(weights[name].equal(weights_again[name]) for name in weights)
    start = GPT2Policy.from_pretrained("tiny", device="cpu").state_dict()
    assert not any(weights[name].equal(start[name]) for name in ("lm.lm_head.weight", "value_head.weight"))
    for stats in first:
        assert stats["first_ratio"] == pytest.approx(1, abs=1e-4)
        assert all(math.isfinite(number) for number in stats.values())


# -- texts ----------------------------------------------------------------------------------------------------------


def test_response_texts_are_the_counted_actions_without_eos(policies):
    policy = policies["tiny"]
    eos = policy.tokenizer.eos_token_id
    texts = [" a very good film.", " 深度学习 ☕", " is", ""]
    rows = [policy.tokenizer.backend_tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
    rows = [rows[0] + [eos], rows[1] + [eos], rows[2], rows[3]]  # the third was cut off, in the fourth nothing counts
    T, rubbish = max(map(len, rows)), rows[0][0]
    actions = torch.tensor([row + [rubbish] * (T - len(row)) for row in rows])
    mask = torch.tensor([[1.0] * len(row) + [0.0] * (T - len(row)) for row in rows])
    rollout = Rollout(policy.encode(["The film"] * 4), actions, mask, mask * 0, mask * 0)
    assert response_texts(policy, rollout) == texts


def test_response_texts_of_a_real_rollout(policies, generator):
    policy = ending_with(policies["tiny"], 0.2)
    rollout = sample_responses(policy, PROMPTS * 4, 8, generator=generator)
    for b, text in enumerate(response_texts(policy, rollout)):
        kept = [a for a in rollout.actions[b].tolist() if a != policy.tokenizer.eos_token_id]
        assert text == policy.tokenizer.backend_tokenizer.decode(kept) and "<|endoftext|>" not in text


@pytest.mark.parametrize("end", [True, False])
def test_encoded_responses_are_the_actions_that_write_them(policies, end):
    policy = policies["tiny"]
    eos, texts = policy.tokenizer.eos_token_id, [" a very good film.", "", " 深度学习 ☕\n", "is"]
    rows = [policy.tokenizer.backend_tokenizer.encode(t, add_special_tokens=False).ids + [eos] * end for t in texts]
    actions, mask = policy.encode_responses(texts, end)
    T = max(map(len, rows))
    assert actions.tolist() == [row + [eos] * (T - len(row)) for row in rows] and actions.dtype == torch.int64
    assert mask.tolist() == [[1.0] * len(row) + [0.0] * (T - len(row)) for row in rows] and mask.dtype == torch.float32
    assert response_texts(policy, Rollout(policy.encode(["A"] * 4), actions, mask, mask, mask)) == texts
    assert end is False or [x.tolist() for x in policy.encode_responses(texts)] == [actions.tolist(), mask.tolist()]


def test_encoded_responses_are_what_was_sampled(policies):
    """Where a text was written in the tokenizer's own pieces, writing and encoding are inverse, EOS included."""
    policy = policies["tiny"]
    actions, mask = policy.encode_responses([" a very good film.", " bad"])
    rollout = Rollout(policy.encode(["A"] * 2), actions, mask, mask, mask)
    again, mask_again = policy.encode_responses(response_texts(policy, rollout))
    assert again.equal(actions) and mask_again.equal(mask)
    logprobs, _ = policy.evaluate(rollout.inputs, actions)
    for b in range(2):
        right = one_at_a_time(policy, "A", actions[b].tolist())[1]
        torch.testing.assert_close(logprobs[b].double(), right, **CLOSE)


def test_encoded_responses_have_at_least_one_column(small):
    eos = small.tokenizer.eos_token_id
    for end in (True, False):
        actions, mask = small.encode_responses(["", ""], end)
        assert actions.tolist() == [[eos]] * 2 and mask.tolist() == [[float(end)]] * 2


def test_bad_texts_are_named(small):
    for texts in ([], "text", [None], None, ["a", 3]):
        with pytest.raises(ValueError, match="texts must be a list of at least one string, got "):
            small.encode_responses(texts)
    long, fits = " film" * 96, " film" * 95
    assert small.encode_responses([fits])[0].shape == (1, 96) == small.encode_responses([long], end=False)[0].shape
    with pytest.raises(ValueError, match="text 1 has 97 tokens, more than the model's context of 96"):
        small.encode_responses(["a", long])
    with pytest.raises(ValueError, match=r"text 1 holds '<\|endoftext\|>', which is put after it anyway"):
        small.encode_responses(["a", "b<|endoftext|>"])
    assert small.encode_responses(["b<|endoftext|>"], end=False)[0][0, -1] == small.tokenizer.eos_token_id


# -- copies, files --------------------------------------------------------------------------------------------------


def test_frozen_copy_stays_while_the_policy_moves(small, generator):
    rollout = sample_responses(small, PROMPTS, 5, generator=generator)
    ref = small.frozen_copy()
    before, _ = ref.evaluate(rollout.inputs, rollout.actions)
    assert before.equal(small.evaluate(rollout.inputs, rollout.actions)[0])
    assert not any(p.requires_grad for p in ref.parameters()) and all(p.requires_grad for p in small.parameters())
    assert not before.requires_grad
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    logprobs, values = small.evaluate(rollout.inputs, rollout.actions)
    (logprobs.mean() + values.mean()).backward()
    optimizer.step()
    assert not torch.allclose(small.evaluate(rollout.inputs, rollout.actions)[0], before, atol=1e-3)
    assert ref.evaluate(rollout.inputs, rollout.actions)[0].equal(before)
    shared = {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in ref.parameters()}
    assert not shared


def test_saved_and_loaded_bit_for_bit(policy, tmp_path, generator):
    policy.save_pretrained(tmp_path)
    loaded = GPT2Policy.from_pretrained(str(tmp_path), device="cpu")
    assert type(loaded.lm) is type(policy.lm)
    ours, theirs = policy.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert loaded.value_head.weight.ne(0).any()
    for text in (*PROMPTS, "a\n\tb ☕"):
        assert loaded.tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
    rollout = sample_responses(policy, PROMPTS, 4, generator=generator)
    for x, y in zip(
        loaded.evaluate(rollout.inputs, rollout.actions), policy.evaluate(rollout.inputs, rollout.actions), strict=True
    ):
        assert x.equal(y)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                assert list(weights.keys())


def test_a_folder_without_value_head_gives_one_at_zero(small, tmp_path):
    small.save_pretrained(tmp_path)
    (tmp_path / "value_head.safetensors").unlink()
    head = GPT2Policy.from_pretrained(tmp_path, device="cpu").value_head
    assert head.weight.eq(0).all() and head.bias.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_as_float32(small, tokenizer, tmp_path, dtype):
    weights = {name: p.to(dtype) for name, p in small.lm.state_dict().items()}
    small.lm.to(dtype).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = GPT2Policy.from_pretrained(tmp_path, device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(p.equal(weights[name].float()) for name, p in loaded.lm.state_dict().items())


def test_bundled_model_is_a_gpt2_in_float32(policies):
    assert type(policies["tiny"].lm) is GPT2LMHeadModel
    assert {p.dtype for p in policies["tiny"].parameters()} == {torch.float32}
    assert policies["tiny"].context == policies["tiny"].lm.config.n_positions >= 128


def test_loading_leaves_progress_bars_as_they_were():
    transformers_logging.disable_progress_bar()
    try:
        GPT2Policy.from_pretrained("tiny", device="cpu")
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()
    GPT2Policy.from_pretrained("tiny", device="cpu")
    assert transformers_logging.is_progress_bar_enabled()


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "./no/such/folder", "what is this?"])
def test_unknown_model(name):
    with pytest.raises(ValueError) as error:
        GPT2Policy.from_pretrained(name)
    assert all(part in str(error.value) for part in (repr(name), '"tiny"', "a folder", '"gpt2"', "network"))


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=f"cannot load '{tmp_path}'"):
        GPT2Policy.from_pretrained(tmp_path)


def test_pickles_are_not_opened(small, tmp_path):
    small.save_pretrained(tmp_path)
    weights = small.lm.state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load"):
        GPT2Policy.from_pretrained(tmp_path)


def test_code_beside_a_model_is_not_run_even_if_someone_says_yes(small, tmp_path, monkeypatch):
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    auto_map = {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.StrangeModel"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "strange", "auto_map": auto_map}))
    (tmp_path / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ValueError, match="cannot load"):
        GPT2Policy.from_pretrained(tmp_path, device="cpu")
    assert not (tmp_path / "ran").exists(), "the folder's own code was run"
    assert not asked, "the learner was asked whether to run the folder's own code"


def test_tokenizer_without_eos():
    with pytest.raises(ValueError, match=r"tokenizer has no EOS token.*set tokenizer\.eos_token"):
        GPT2Policy(random_lm("gpt2", 257), byte_tokenizer(257, unk_token="<|endoftext|>"))


@pytest.mark.parametrize("prompts", ["The film is", [], [3], ["The film is", None]])
def test_prompts_must_be_a_list_of_strings(small, prompts):
    with pytest.raises((ValueError, TypeError), match="prompts must be a list of"):
        sample_responses(small, prompts, 3)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_temperature_must_be_positive(small, temperature):
    with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
        sample_responses(small, PROMPTS, 3, temperature)


@pytest.mark.parametrize("number", [0, -2])
def test_max_new_tokens_must_be_positive(small, number):
    with pytest.raises(ValueError, match=f"max_new_tokens must be a whole number of at least 1, got {number}"):
        sample_responses(small, PROMPTS, number)


def test_prompt_and_response_must_fit_the_context(tokenizer, generator):
    context = 24
    policy = GPT2Policy(random_lm("gpt2", len(tokenizer), context), tokenizer)
    prompts = ["A", "The film is", "A film"]
    longest = len(tokenizer("The film is")["input_ids"])
    with seen_by(policy.lm.get_input_embeddings()) as calls:
        with pytest.raises(ValueError) as error:
            sample_responses(policy, prompts, context - longest + 1, generator=generator)
    assert not calls, "no compute is spent on a call that cannot succeed"
    words = (f"prompt 1 has {longest} tokens", f"max_new_tokens={context - longest + 1}", f"context of {context}")
    assert all(part in str(error.value) for part in words)
    never = ending_with(policy, 1e-9)
    assert (
        sample_responses(never, prompts, context - longest, generator=generator).actions.shape[1] == context - longest
    )


def test_model_without_a_cache(tokenizer):
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(ValueError, match="MambaForCausalLM keeps no past_key_values"):
        sample_responses(GPT2Policy(MambaForCausalLM(config), tokenizer), ["The film is"], 3)


# -- the real thing: GPT-2's own size, random weights ---------------------------------------------------------------


@pytest.fixture(scope="module")
def real_size(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    byte_tokenizer(50257).save_pretrained(folder)
    yield with_random_values(GPT2Policy.from_pretrained(folder, device="cpu"))
    shutil.rmtree(folder)


def test_gpt2_of_the_real_configuration(real_size, generator):
    policy, prompts = real_size, ["The film is", "A"]
    config = policy.lm.config
    assert (config.n_layer, config.n_embd, config.vocab_size) == (12, 768, 50257) == (12, 768, len(policy.tokenizer))
    assert policy.tokenizer.eos_token_id == 50256 and policy.context == 1024
    rollout = sample_responses(policy, prompts, 4, 0.7, generator)
    logprobs, values, entropies = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    for b, prompt in enumerate(prompts):
        logits, right_logprobs, right_values = one_at_a_time(policy, prompt, rollout.actions[b].tolist(), 0.7)
        torch.testing.assert_close(logprobs[b].double(), right_logprobs, **CLOSE)
        torch.testing.assert_close(values[b].double(), right_values, **CLOSE)
        right_entropies = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropies[b].double(), right_entropies, **CLOSE)
    torch.testing.assert_close(rollout.old_logprobs, logprobs * rollout.mask, **CLOSE)
    torch.testing.assert_close(rollout.values, values * rollout.mask, **CLOSE)
    del logprobs, values, entropies
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2)
    rewards = rollout.mask * torch.tensor([[1.0], [-1.0]])
    advantages, returns = gae(rewards, rollout.values, rollout.mask)
    weight = policy.lm.transformer.h[5].mlp.c_fc.weight.detach().clone()
    stats = ppo_update(policy, optimizer, rollout, advantages, returns, PPOConfig(epochs=1, minibatches=1))
    assert stats["first_ratio"] == pytest.approx(1, abs=1e-4) and stats["grad_norm"] > 0
    assert not policy.lm.transformer.h[5].mlp.c_fc.weight.equal(weight)


# -- GPU ------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_cpu_and_gpu_agree(policies, name, generator):
    """The same rollout: scores, advantages, entropies and losses."""
    rollout = sample_responses(policies[name], PROMPTS * 4, 16, 0.8, generator)

    def everything(policy, rollout):
        scored = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
        advantages, returns = gae(rollout.old_logprobs, rollout.values, rollout.mask, gamma=0.98, lam=0.9)
        return (
            *scored,
            entropy(policy.logits(rollout.inputs, rollout.actions), rollout.mask),
            advantages,
            returns,
            clipped_surrogate_loss(scored[0] * 0.9, rollout.old_logprobs, advantages, rollout.mask),
            value_loss(scored[1] * 0.9, returns, rollout.mask, rollout.values, 0.2),
        )

    on_cpu = everything(policies[name], rollout)
    on_gpu = everything(copy.deepcopy(policies[name]).cuda(), rollout.to("cuda"))
    for x, y in zip(on_cpu, on_gpu, strict=True):
        assert y.is_cuda
        torch.testing.assert_close(x, y.cpu(), atol=1e-3, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_ratio_is_one_on_the_gpu(policies, dtype):
    """In bfloat16 a cached pass differs from a whole one by up to 0.05, so there `evaluate` must have the last word."""
    policy = copy.deepcopy(policies["tiny"]).cuda()
    policy.dtype = dtype
    rollout = sample_responses(policy, PROMPTS * 8, 24, generator=torch.Generator("cuda").manual_seed(0))
    assert rollout.actions.is_cuda and policy.autocasts == (dtype is not None)
    with torch.no_grad():
        logprobs, values = policy.evaluate(rollout.inputs, rollout.actions)
    assert logprobs.dtype == values.dtype == torch.float32
    tolerance = dict(atol=1e-3 if dtype is None else 1e-5, rtol=0)
    torch.testing.assert_close(logprobs * rollout.mask, rollout.old_logprobs, **tolerance)
    torch.testing.assert_close(values * rollout.mask, rollout.values, **tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_blocked_tokens_on_the_gpu(policies, dtype):
    blocked, policy = likely(policies["tiny"]), copy.deepcopy(policies["tiny"]).cuda()
    policy.dtype = dtype
    generator = torch.Generator("cuda").manual_seed(0)
    rollout = sample_responses(policy, PROMPTS * 500, 5, generator=generator, blocked=blocked)
    assert rollout.inputs.blocked.is_cuda and not torch.isin(rollout.actions, torch.tensor(blocked).cuda()).any()
    with torch.no_grad():
        logprobs, _, entropies = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    torch.testing.assert_close(logprobs * rollout.mask, rollout.old_logprobs, atol=1e-3, rtol=0)
    assert entropies.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_update_on_the_gpu(policies, dtype):
    policy = copy.deepcopy(policies["tiny"]).cuda()
    policy.dtype = dtype
    rollout = sample_responses(policy, PROMPTS * 4, 16, generator=torch.Generator("cuda").manual_seed(0))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    advantages, returns = gae(rollout.old_logprobs, rollout.values, rollout.mask)
    stats = ppo_update(policy, optimizer, rollout, advantages, returns, PPOConfig(epochs=1, minibatches=1))
    # one minibatch, but shuffled, and with gradients: under bfloat16 other kernels may round otherwise
    assert stats["first_ratio"] == pytest.approx(1, abs=1e-3 if dtype is None else 0.1)
    assert all(math.isfinite(number) for number in stats.values())
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
